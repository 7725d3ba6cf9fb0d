package main

import "testing"

func TestReadOnlyFile(t *testing.T) {
	for _, c := range []struct {
		line        string
		first, size uintptr
	}{
		{"00400000-01000000 r-xp 00000000 fe:00 123    /usr/bin/kiln", 0x400000, 0xc00000},
		{"01000000-01002000 r--p 00c00000 fe:00 123    /usr/bin/kiln", 0x1000000, 0x2000},
		{"01002000-01003000 rw-p 00c02000 fe:00 123    /usr/bin/kiln", 0, 0},
		{"7f0000000000-7f0000001000 r--s 00000000 fe:00 9    /var/lib/a folder/kiln.db (deleted)", 0x7f0000000000, 0x1000},
		{"7f0000000000-7f0000001000 rw-s 00000000 fe:00 9    /var/lib/kiln.db", 0, 0},
		{"7ffd0f5f9000-7ffd0f5fb000 r-xp 00000000 00:00 0    [vdso]", 0, 0},
		{"7ffd0f5f9000-7ffd0f5fb000 r-xp 00000000 00:00 0", 0, 0},
		{"c000000000-c000400000 ---p 00000000 00:00 0", 0, 0},
		{"01000000-00400000 r-xp 00000000 fe:00 123    /usr/bin/kiln", 0, 0},
		{"junk", 0, 0},
	} {
		first, size, ok := readOnlyFile(c.line)
		if first != c.first || size != c.size || ok != (c.size > 0) {
			t.Errorf("%q: got %#x, %#x, %v; want %#x, %#x", c.line, first, size, ok, c.first, c.size)
		}
	}
}
