package main

import (
	"encoding/binary"
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEmptyHive reads the hive as Windows does: from the base block, whose
// checksum has to be right, to the bin, all of which has to be cells, and from the
// root key to its security.
func TestEmptyHive(t *testing.T) {
	le, hive := binary.LittleEndian, emptyHive()
	if len(hive) != 2*4096 || string(hive[:4]) != "regf" || string(hive[4096:4100]) != "hbin" {
		t.Fatalf("%d bytes that begin with %q, and the bin with %q", len(hive), hive[:4], hive[4096:4100])
	}
	var sum uint32
	for at := 0; at < 512; at += 4 {
		sum ^= le.Uint32(hive[at:])
	}
	if sum != 0 || le.Uint32(hive[508:]) == 0 {
		t.Errorf("the checksum is %#x, off by %#x", le.Uint32(hive[508:]), sum)
	}
	if begun, ended := le.Uint32(hive[4:]), le.Uint32(hive[8:]); begun != ended {
		t.Errorf("%d writes begun and %d ended: a log would be needed", begun, ended)
	}

	bin := hive[4096:]
	cells := map[uint32][]byte{}
	free := 0
	for at := uint32(32); at < 4096; {
		size := int32(le.Uint32(bin[at:]))
		if size%8 != 0 || size == 0 {
			t.Fatalf("the cell at %d has %d bytes", at, size)
		}
		if size > 0 {
			free, at = free+1, at+uint32(size)
			continue
		}
		cells[at] = bin[at+4 : at-uint32(size)]
		at -= uint32(size)
	}
	if len(cells) != 2 || free != 1 {
		t.Fatalf("%d cells in use and %d free, want 2 and 1", len(cells), free)
	}
	key := cells[le.Uint32(hive[36:])]
	if string(key[:2]) != "nk" || le.Uint16(key[2:]) != 0x2c || string(key[76:76+le.Uint16(key[72:])]) != "Root" {
		t.Errorf("no root key: % x", key)
	}
	if subkeys, values := le.Uint32(key[20:]), le.Uint32(key[36:]); subkeys != 0 || values != 0 {
		t.Errorf("%d subkeys and %d values, want none", subkeys, values)
	}
	at := le.Uint32(key[44:])
	security := cells[at]
	if string(security[:2]) != "sk" || le.Uint32(security[4:]) != at || le.Uint32(security[8:]) != at || le.Uint32(security[12:]) != 1 {
		t.Errorf("not the security of one key: % x", security)
	}
	// The header, the list with its two entries, owner, group ([MS-DTYP] 2.4.6).
	want := "010004804800000058000000" + "0000000014000000" +
		"0200340002000000" +
		"000214003f000f00010100000000000512000000" +
		"000218003f000f0001020000000000052000000020020000" +
		"01020000000000052000000020020000" +
		"010100000000000512000000"
	if diff := cmp.Diff(want, hex.EncodeToString(security[20:20+le.Uint32(security[16:])])); diff != "" {
		t.Errorf("O:BAG:SYD:(A;CI;KA;;;SY)(A;CI;KA;;;BA) (-want +got):\n%s", diff)
	}
}
