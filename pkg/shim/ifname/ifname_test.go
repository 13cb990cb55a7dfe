package ifname_test

import (
	"fmt"
	"strings"
	"testing"
	"unicode"

	"github.com/zlayer/zlayer-cni/pkg/shim/ifname"
)

func ExampleInterfaceName() {
	fmt.Println(ifname.InterfaceName([]string{"prod"}, "g"))
	fmt.Println(ifname.InterfaceName([]string{"prod", "web"}, "b"))
	fmt.Println(ifname.InterfaceName([]string{"production", "payment-gateway"}, "b"))
	// Output:
	// zl-prod-g
	// zl-prod-web-b
	// zl-96852fb868-b
}

func TestShortNamesAreReadable(t *testing.T) {
	for want, parts := range map[string][]string{
		"zl-prod-g": {"prod"}, "zl-a-b-g": {"a", "b"}, "zl-v1.2-x_y-g": {"v1.2", "x_y"},
	} {
		if got := ifname.InterfaceName(parts, "g"); got != want {
			t.Errorf("%q: %s, want %s", parts, got, want)
		}
	}
}

func TestNamesAreUniqueShortAndStable(t *testing.T) {
	long := strings.Repeat("x", 4096)
	for _, suffix := range []string{"", "g", "b", "d", "service", long} {
		seen := make(map[string]string) // of one suffix, since a suffix may look like another's last part
		for _, parts := range [][]string{
			nil, {""}, {"", ""}, {"a"}, {"a", ""}, {"a", "b"}, {"a-b"}, {"a", "b", "c"}, {"a-b", "c"}, {"a", "b-c"},
			{"zlayer", "4242"}, {"zlayer", "4243"}, {"production-eu-west-1", "payment-gateway"}, {"production-eu-west-1", "payment-gatewa"},
			{"größe"}, {"grosse"}, {"日本語", "🦀"}, {long}, {long, long}, {"../../etc"}, {"a b"}, {"a\x00b"},
		} {
			input := fmt.Sprintf("%.80q %.20q", parts, suffix)
			name := ifname.InterfaceName(parts, suffix)
			if len(name) > 15 || !strings.HasPrefix(name, "zl-") || strings.ContainsFunc(name, unfit) {
				t.Errorf("%s: %q is no name for an interface", input, name)
			}
			if again := ifname.InterfaceName(parts, suffix); again != name {
				t.Errorf("%s: %s, then %s", input, name, again)
			}
			if other, taken := seen[name]; taken {
				t.Errorf("%s and %s are both %s", input, other, name)
			}
			seen[name] = input
		}
	}
}

func unfit(c rune) bool {
	return c > unicode.MaxASCII || c == '/' || unicode.IsSpace(c) || unicode.IsControl(c)
}
