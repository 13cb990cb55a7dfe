package main

import "encoding/binary"

// The registry hive of Windows in the little that emptyHive needs of it
// (github.com/msuhanov/regf), and the security descriptor of [MS-DTYP] 2.4.
const (
	hivePage  = 4096 // size of the base block, and what bins are multiples of
	cellAlign = 8
	noCell    = 0xffffffff // an offset that leads nowhere
	// longAgo is the time that everything in the image has, as a FILETIME.
	longAgo = 116444736000000000

	rootCell     = 32               // right behind the bin's header
	rootKeyFlags = 0x4 | 0x8 | 0x20 // the hive's root, not to be deleted, its name in ASCII
	rootKeyName  = "Root"

	keyAllAccess = 0x000f003f
	inherited    = 0x2 // by keys below
)

// emptyHive returns a registry hive with a root key and nothing below it, which
// SYSTEM and administrators may change. Windows Server 2025 unpacks no layer
// whose hives are empty files, as earlier ones do.
func emptyHive() []byte {
	le := binary.LittleEndian
	security := uint32(rootCell + len(cell(rootKey(0))))

	bin := append([]byte("hbin"), make([]byte, rootCell-4)...)
	le.PutUint32(bin[8:], hivePage)
	le.PutUint64(bin[20:], longAgo)
	bin = append(bin, cell(rootKey(security))...)
	bin = append(bin, cell(keySecurity(security))...)
	rest := hivePage - len(bin)
	bin = append(bin, make([]byte, rest)...)
	le.PutUint32(bin[hivePage-rest:], uint32(rest)) // of a cell that is free the size is positive

	base := make([]byte, hivePage)
	copy(base, "regf")
	le.PutUint32(base[4:], 1) // writes begun
	le.PutUint32(base[8:], 1) // and ended
	le.PutUint64(base[12:], longAgo)
	le.PutUint32(base[20:], 1) // version 1.3, which all of them read
	le.PutUint32(base[24:], 3)
	le.PutUint32(base[32:], 1) // format: loaded as it is
	le.PutUint32(base[36:], rootCell)
	le.PutUint32(base[40:], hivePage)
	le.PutUint32(base[44:], 1)
	le.PutUint32(base[checksumAt:], hiveChecksum(base))
	return append(base, bin...)
}

// checksumAt is where a base block has the checksum of what is before.
const checksumAt = 508

func hiveChecksum(base []byte) uint32 {
	var sum uint32
	for at := 0; at < checksumAt; at += 4 {
		sum ^= binary.LittleEndian.Uint32(base[at:])
	}
	return sum
}

// cell is content as a cell in use.
func cell(content []byte) []byte {
	size := (4 + len(content) + cellAlign - 1) / cellAlign * cellAlign
	c := make([]byte, size)
	binary.LittleEndian.PutUint32(c, uint32(-int32(size)))
	copy(c[4:], content)
	return c
}

// rootKey is a key node without subkeys and values.
func rootKey(security uint32) []byte {
	le := binary.LittleEndian
	key := append([]byte("nk"), make([]byte, 74)...)
	le.PutUint16(key[2:], rootKeyFlags)
	le.PutUint64(key[4:], longAgo)
	for _, at := range []int{16, 28, 32, 40, 48} { // parent, subkeys, volatile ones, values, class
		le.PutUint32(key[at:], noCell)
	}
	le.PutUint32(key[44:], security)
	le.PutUint16(key[72:], uint16(len(rootKeyName)))
	return append(key, rootKeyName...)
}

// keySecurity is the only security cell of a hive, at offset at, for one key.
func keySecurity(at uint32) []byte {
	le := binary.LittleEndian
	descriptor := securityDescriptor()
	c := []byte{'s', 'k', 0, 0}
	for _, value := range []uint32{at, at, 1, uint32(len(descriptor))} { // next, previous, users, size
		c = le.AppendUint32(c, value)
	}
	return append(c, descriptor...)
}

// securityDescriptor is O:BAG:SYD:(A;CI;KA;;;SY)(A;CI;KA;;;BA) in its binary form.
func securityDescriptor() []byte {
	le := binary.LittleEndian
	system := []byte{1, 1, 0, 0, 0, 0, 0, 5, 18, 0, 0, 0}                      // S-1-5-18
	administrators := []byte{1, 2, 0, 0, 0, 0, 0, 5, 32, 0, 0, 0, 32, 2, 0, 0} // S-1-5-32-544

	const aceHeader, header = 8, 20
	list := []byte{2, 0, 0, 0, 2, 0, 0, 0} // revision, size, two entries
	for _, who := range [][]byte{system, administrators} {
		list = append(list, 0, inherited) // allows
		list = le.AppendUint16(list, uint16(aceHeader+len(who)))
		list = append(le.AppendUint32(list, keyAllAccess), who...)
	}
	le.PutUint16(list[2:], uint16(len(list)))

	const relativeWithList = 0x8004 // offsets in place of pointers, and a DACL
	descriptor := le.AppendUint16([]byte{1, 0}, relativeWithList)
	owner := header + len(list)
	for _, offset := range []int{owner, owner + len(administrators), 0, header} { // owner, group, SACL, DACL
		descriptor = le.AppendUint32(descriptor, uint32(offset))
	}
	descriptor = append(descriptor, list...)
	descriptor = append(descriptor, administrators...)
	return append(descriptor, system...)
}
