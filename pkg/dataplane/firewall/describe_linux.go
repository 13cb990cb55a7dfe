package firewall

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// describe returns the expressions of a rule as text that is the same for rules
// that do the same. raw is what the kernel sends, or what would be sent to it:
// the kernel
// adds defaults and leaves out ids, so the bytes differ. An expression
// that our rules don't use is described by its bytes, and equals none of ours.
func describe(family byte, raw []byte) (string, error) {
	ad, err := netlink.NewAttributeDecoder(raw)
	if err != nil {
		return "", err
	}
	var out []string
	for ad.Next() {
		one, err := describeExpression(family, ad.Bytes())
		if err != nil {
			return "", err
		}
		out = append(out, one)
	}
	return strings.Join(out, " "), ad.Err()
}

// describeRule is describe for a rule of ours.
func describeRule(family byte, r rule) (string, error) {
	var out []string
	for _, e := range r {
		raw, err := expr.Marshal(family, e)
		if err != nil {
			return "", err
		}
		one, err := describeExpression(family, raw)
		if err != nil {
			return "", err
		}
		out = append(out, one)
	}
	return strings.Join(out, " "), nil
}

func describeExpression(family byte, raw []byte) (string, error) {
	ad, err := netlink.NewAttributeDecoder(raw)
	if err != nil {
		return "", err
	}
	ad.ByteOrder = binary.BigEndian
	var name string
	var data []byte
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			name = ad.String()
		case unix.NFTA_EXPR_DATA:
			data = ad.Bytes()
		}
	}
	if err := ad.Err(); err != nil {
		return "", err
	}
	e := expressionOf(name)
	if e == nil || expr.Unmarshal(family, data, e) != nil {
		return fmt.Sprintf("%s{%x}", name, data), nil
	}
	if immediate, ok := e.(*expr.Immediate); ok && immediate.Register == unix.NFT_REG_VERDICT {
		verdict := expr.Verdict{}
		if err := expr.Unmarshal(family, data, &verdict); err != nil {
			return "", fmt.Errorf("decode verdict: %w", err)
		}
		return fmt.Sprintf("verdict%+v", verdict), nil
	}
	return fmt.Sprintf("%s%+v", name, e), nil
}

// expressionOf returns an empty expression of a kind that our rules use, else
// nil.
func expressionOf(name string) expr.Any {
	switch name {
	case "bitwise":
		return &expr.Bitwise{}
	case "cmp":
		return &expr.Cmp{}
	case "ct":
		return &expr.Ct{}
	case "immediate":
		return &expr.Immediate{}
	case "lookup":
		return &expr.Lookup{}
	case "masq":
		return &expr.Masq{}
	case "meta":
		return &expr.Meta{}
	case "objref":
		return &expr.Objref{}
	case "payload":
		return &expr.Payload{}
	}
	return nil
}
