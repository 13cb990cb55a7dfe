// Package linkalias reads and writes the aliases that mark network links as the
// daemon's: a mark, then words NAME=VALUE. All functions are pure.
package linkalias

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

const (
	// Mark begins the alias of every link of ours, with the format's version.
	Mark = "zlayer/1"
	// Max is the kernel's limit in bytes (IFALIASZ less its terminating zero).
	Max = 255
	// digestMark begins what Digest returns.
	digestMark = "sha256:"
)

// Words splits an alias into its words, the values unescaped. What is not ours,
// or holds a word twice, is an error.
func Words(alias string) (map[string]string, error) {
	rest, ours := strings.CutPrefix(alias, Mark+" ")
	if !ours {
		return nil, errors.New("alias is not ours")
	}
	words := map[string]string{}
	for word := range strings.SplitSeq(rest, " ") {
		name, value, found := strings.Cut(word, "=")
		if _, twice := words[name]; !found || twice || name == "" {
			return nil, fmt.Errorf("alias holds the word %q", word)
		}
		plain, err := unescape(value)
		if err != nil {
			return nil, err
		}
		words[name] = plain
	}
	return words, nil
}

// Escape makes a value of any text: everything but letters, digits and a few
// signs becomes a percent sign and two hexadecimal digits.
func Escape(s string) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	for _, c := range []byte(s) {
		if plainByte(c) {
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{'%', digits[c>>4], digits[c&15]})
	}
	return b.String()
}

// Digest stands for a name that is too long for an alias, as "sha256:" and 64
// hexadecimal digits. The digest of a digest is itself.
func Digest(name string) string {
	if IsDigest(name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return digestMark + hex.EncodeToString(sum[:])
}

// IsDigest tells whether name has the form of what Digest returns.
func IsDigest(name string) bool {
	digits, found := strings.CutPrefix(name, digestMark)
	raw, err := hex.DecodeString(digits)
	return found && err == nil && len(raw) == sha256.Size
}

func plainByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._-/:,", c) >= 0
}

func unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case plainByte(s[i]):
			b.WriteByte(s[i])
		case s[i] == '%' && i+2 < len(s):
			raw, err := hex.DecodeString(s[i+1 : i+3])
			if err != nil {
				return "", fmt.Errorf("alias holds the escape %q", s[i:i+3])
			}
			b.WriteByte(raw[0])
			i += 2
		default:
			return "", fmt.Errorf("alias holds the byte %q", s[i])
		}
	}
	return b.String(), nil
}
