// Package linkname makes network interface names from free text.
//
// A name is stable: the same parts always give the same name, on every build
// and every node. It fits the kernel's limit and holds no character that a
// shell, a path or nft would treat specially. All functions are pure.
package linkname

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// MaxLen is the longest interface name in bytes: the kernel's IFNAMSIZ less
// its terminating zero.
const MaxLen = 15

const prefix = "zl-"

// Name returns the interface name of parts and suffix, for example
// "zl-default-b" for the parts "default" and the suffix "b".
//
// The readable form is used when it fits MaxLen, when every part is made of
// ASCII letters, digits, dots and underscores (no dash, so that "a-b","c" and
// "a","b-c" differ), and when no part is empty. Otherwise the parts are replaced by as many hexadecimal digits of
// their SHA-256 as fit. A suffix longer than a third of the name is dropped
// and goes into the hash instead.
func Name(parts []string, suffix string) string {
	if readable(parts, suffix) {
		name := prefix + strings.Join(parts, "-")
		if suffix != "" {
			name += "-" + suffix
		}
		if len(name) <= MaxLen {
			return name
		}
	}
	return hashed(parts, suffix)
}

func readable(parts []string, suffix string) bool {
	if len(parts) == 0 || !plain(suffix) {
		return false
	}
	for _, part := range parts {
		if part == "" || !plain(part) {
			return false
		}
	}
	return true
}

// plain tells whether s may stand in a name as it is. Dots pass because a name
// is never "." or ".." behind the prefix.
func plain(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_':
		default:
			return false
		}
	}
	return true
}

// hashed writes each part's length before it, so that no two lists of parts
// feed the hash the same bytes.
func hashed(parts []string, suffix string) string {
	const longestSuffix = MaxLen / 3
	h := sha256.New()
	for _, part := range append(parts[:len(parts):len(parts)], suffix) {
		var length [8]byte
		for i, n := 0, uint64(len(part)); i < len(length); i, n = i+1, n>>8 {
			length[i] = byte(n)
		}
		h.Write(length[:])
		h.Write([]byte(part))
	}
	tail := ""
	if suffix != "" && len(suffix) <= longestSuffix && plain(suffix) {
		tail = "-" + suffix
	}
	digits := hex.EncodeToString(h.Sum(nil))
	return prefix + digits[:MaxLen-len(prefix)-len(tail)] + tail
}
