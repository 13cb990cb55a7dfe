package cni

import (
	"strconv"
	"unicode/utf8"
)

// jsonWriter writes JSON piece by piece, without reflection. What is empty is
// left out, with its name, except by name itself.
type jsonWriter struct{ b []byte }

// object writes {fields}.
func (w *jsonWriter) object(fields func()) {
	w.b = append(w.b, '{')
	fields()
	w.b = append(w.b, '}')
}

// list writes "key":[elements], unless there are none.
func list[T any](w *jsonWriter, key string, elements []T, write func(T)) {
	if len(elements) == 0 {
		return
	}
	w.name(key)
	w.b = append(w.b, '[')
	for i, element := range elements {
		if i > 0 {
			w.b = append(w.b, ',')
		}
		write(element)
	}
	w.b = append(w.b, ']')
}

// name begins a field.
func (w *jsonWriter) name(key string) {
	if w.b[len(w.b)-1] != '{' {
		w.b = append(w.b, ',')
	}
	w.string(key)
	w.b = append(w.b, ':')
}

func (w *jsonWriter) text(key, value string) {
	if value != "" {
		w.name(key)
		w.string(value)
	}
}

func (w *jsonWriter) number(key string, value int) {
	if value != 0 {
		w.optional(key, &value)
	}
}

func (w *jsonWriter) optional(key string, value *int) {
	if value != nil {
		w.name(key)
		w.b = strconv.AppendInt(w.b, int64(*value), 10)
	}
}

// string writes any text; bytes that are no UTF-8 become U+FFFD.
func (w *jsonWriter) string(s string) {
	w.b = append(w.b, '"')
	for _, r := range s {
		switch {
		case r == '"', r == '\\':
			w.b = append(w.b, '\\', byte(r))
		case r < ' ':
			w.b = append(w.b, '\\', 'u', '0', '0', '0'+byte(r>>4), "0123456789abcdef"[r&0xf])
		default:
			w.b = utf8.AppendRune(w.b, r)
		}
	}
	w.b = append(w.b, '"')
}
