package shim

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// NamespaceGUID is the bare, lower-case GUID of a Windows container's network
// namespace.
type NamespaceGUID string

// ParseNamespaceGUID returns a GUID as Windows' container services write it,
// from that form or one with braces or upper-case digits. The GUID of zeros is
// none: it names no namespace.
func ParseNamespaceGUID(text string) (NamespaceGUID, error) {
	bare := text
	if inner, ok := strings.CutPrefix(text, "{"); ok && strings.HasSuffix(inner, "}") {
		bare = strings.TrimSuffix(inner, "}")
	}
	groups := strings.Split(bare, "-")
	lengths := []int{8, 4, 4, 4, 12}
	valid := len(groups) == len(lengths) && strings.Trim(bare, "0-") != ""
	for i := 0; valid && i < len(lengths); i++ {
		_, err := hex.DecodeString(groups[i])
		valid = err == nil && len(groups[i]) == lengths[i]
	}
	if !valid {
		return "", fmt.Errorf("namespace: %s is no GUID", short(text))
	}
	return NamespaceGUID(strings.ToLower(bare)), nil
}

// UnmarshalText reads what ParseNamespaceGUID does. Empty text is no namespace.
func (g *NamespaceGUID) UnmarshalText(text []byte) (err error) {
	if len(text) == 0 {
		*g = ""
		return nil
	}
	*g, err = ParseNamespaceGUID(string(text))
	return err
}
