package dns

import (
	"reflect"

	"github.com/miekg/dns"
)

// allocation is the least that Go allocates, and what it rounds small sizes up to.
const allocation = 16

// recordsSize is about how much memory the records of an answer take. What they took
// on the wire is no measure: a bit there may be two bytes here, and a byte of text
// the sixteen that every string takes beside its bytes.
func recordsSize(answer *dns.Msg) int {
	return pointed(reflect.ValueOf(answer.Answer)) + pointed(reflect.ValueOf(answer.Ns)) + pointed(reflect.ValueOf(answer.Extra))
}

// pointed is the size of all that a value points to.
func pointed(value reflect.Value) (size int) {
	switch value.Kind() {
	case reflect.String:
		return allocated(value.Len())
	case reflect.Slice:
		size = allocated(value.Cap() * int(value.Type().Elem().Size())) //nolint:gosec // sizes of types are small
		if !points(value.Type().Elem().Kind()) {
			return size
		}
		for i := range value.Len() {
			size += pointed(value.Index(i))
		}
	case reflect.Struct:
		for i := range value.NumField() {
			size += pointed(value.Field(i))
		}
	case reflect.Interface:
		return pointed(value.Elem())
	case reflect.Pointer:
		if !value.IsNil() {
			return allocated(int(value.Type().Elem().Size())) + pointed(value.Elem()) //nolint:gosec // see above
		}
	}
	return size
}

// points tells whether values of a kind can point to something.
func points(kind reflect.Kind) bool {
	return kind >= reflect.Array && kind != reflect.UnsafePointer
}

func allocated(size int) int {
	return (size + allocation - 1) / allocation * allocation
}
