package linkalias_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/internal/linkalias"
)

func TestWords(t *testing.T) {
	for _, test := range []struct {
		name, alias string
		want        map[string]string
	}{
		{"one", "zlayer/1 device=cluster", map[string]string{"device": "cluster"}},
		{"escaped", "zlayer/1 name=a%20b%3d%0A table=7", map[string]string{"name": "a b=\n", "table": "7"}},
		{"empty value", "zlayer/1 name=", map[string]string{"name": ""}},
		{"foreign", "uplink to rack 7", nil},
		{"other version", "zlayer/12 device=cluster", nil},
		{"mark alone", "zlayer/1", nil},
		{"no word", "zlayer/1 ", nil},
		{"no name", "zlayer/1 =x", nil},
		{"no value", "zlayer/1 device", nil},
		{"twice", "zlayer/1 a=1 a=1", nil},
		{"bad escape", "zlayer/1 a=%zz", nil},
		{"cut escape", "zlayer/1 a=%4", nil},
		{"raw byte", "zlayer/1 a=\x01", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := linkalias.Words(test.alias)
			if diff := cmp.Diff(test.want, got); diff != "" || (err == nil) != (test.want != nil) {
				t.Errorf("words, error %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestDigest(t *testing.T) {
	const ofA = "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb" // counted by sha256sum
	for _, test := range []struct{ name, give, want string }{
		{"name", "a", ofA},
		{"digest", ofA, ofA},
		{"what only begins like a digest", "sha256:abc", "sha256:67e9bc3cfd2163c2978358dfe00d2f912cd4ee0c99f077c3583b39b48aebb124"},
	} {
		if got := linkalias.Digest(test.give); got != test.want || len(got) != len(ofA) {
			t.Errorf("%s: Digest(%q) = %q, want %q", test.name, test.give, got, test.want)
		}
	}
}

func FuzzWords(f *testing.F) {
	for _, seed := range []string{"", "zlayer/1 device=cluster", "zlayer/1 device=service name=ns/web table=1001", "zlayer/1 a=%41%zz", "zlayer/1 =", "zlayer/1 a= b="} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, alias string) {
		words, err := linkalias.Words(alias)
		if err != nil {
			return
		}
		var again strings.Builder
		again.WriteString(linkalias.Mark)
		for name, value := range words {
			again.WriteString(" " + name + "=" + linkalias.Escape(value))
		}
		got, err := linkalias.Words(again.String())
		if diff := cmp.Diff(words, got); diff != "" || err != nil {
			t.Errorf("%q written again, error %v (-want +got):\n%s", alias, err, diff)
		}
	})
}
