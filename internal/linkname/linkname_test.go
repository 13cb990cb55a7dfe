package linkname_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/zlayer/zlayer-cni/internal/linkname"
)

func TestName(t *testing.T) {
	long := strings.Repeat("x", 4096)
	for _, tc := range []struct {
		name   string
		parts  []string
		suffix string
		want   string
	}{
		{"readable when it fits", []string{"default"}, "b", "zl-default-b"},
		{"two parts", []string{"a", "b"}, "d", "zl-a-b-d"},
		{"a dash is hashed", []string{"web-1"}, "b", "zl-4b5a635df4-b"},
		{"no suffix", []string{"default"}, "", "zl-default"},
		{"exactly the limit", []string{"0123456789"}, "b", "zl-0123456789-b"},
		{"one over the limit is hashed", []string{"0123456789a"}, "b", "zl-77dc0fe83d-b"},
		{"a slash is hashed", []string{"ns/web"}, "b", "zl-7d516d0db5-b"},
		{"nothing at all", nil, "", "zl-af5570f5a181"},
		{"4,096 characters", []string{long}, "p", "zl-36a858f177-p"},
		{"a long suffix goes into the hash", []string{"a"}, long, "zl-865910b31c48"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := linkname.Name(tc.parts, tc.suffix); got != tc.want {
				t.Errorf("Name(%.40q, %.40q) = %q, want %q", tc.parts, tc.suffix, got, tc.want)
			}
		})
	}
}

func TestNamesDiffer(t *testing.T) {
	seen := map[string][]string{}
	for _, parts := range [][]string{
		{"a-b", "c"}, {"a", "b-c"}, {"a", "b", "c"}, {"a-b-c"}, {""}, {"", ""}, {"a"}, {"a", ""}, {"A"}, {"ä"}, {"a/b"}, {"a", "/b"},
	} {
		name := linkname.Name(parts, "b")
		if before, taken := seen[name]; taken {
			t.Errorf("%q and %q both give %q", before, parts, name)
		}
		seen[name] = parts
	}
}

func FuzzName(f *testing.F) {
	for _, seed := range []string{"", "default", "ns/web", "..", strings.Repeat("é", 300), "a\x00b", "-", "%s"} {
		f.Add(seed, "eth0", "p")
	}
	valid := regexp.MustCompile(`^zl-[A-Za-z0-9._-]{1,12}$`)
	f.Fuzz(func(t *testing.T, a, b, suffix string) {
		name := linkname.Name([]string{a, b}, suffix)
		if !valid.MatchString(name) {
			t.Errorf("Name(%q, %q, %q) = %q", a, b, suffix, name)
		}
		if again := linkname.Name([]string{a, b}, suffix); again != name {
			t.Errorf("Name(%q, %q, %q) = %q, then %q", a, b, suffix, name, again)
		}
	})
}
