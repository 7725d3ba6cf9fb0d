package binfmt

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// compatible tells whether a processor runs another architecture's programs by
// itself: a kernel of 64 bits may run those of 32. One that does nothing but end
// is tried, for it is the kernel's configuration that decides.
func compatible(own, arch string) bool {
	var code []byte
	switch {
	case own == "amd64" && arch == "386":
		code = []byte{
			0xb8, 1, 0, 0, 0, // mov eax, 1 (exit)
			0x31, 0xdb, // xor ebx, ebx
			0xcd, 0x80, // int 0x80
		}
	case own == "arm64" && arch == "arm":
		code = []byte{
			0x00, 0x00, 0xa0, 0xe3, // mov r0, #0
			0x01, 0x70, 0xa0, 0xe3, // mov r7, #1 (exit)
			0x00, 0x00, 0x00, 0xef, // svc 0
		}
	default:
		return false
	}
	for _, m := range machines() {
		if m.arch == arch {
			return runs(m.program(code))
		}
	}
	return false
}

// program is a whole file that runs code; for little-endian machines of 32 bits.
func (m machine) program(code []byte) []byte {
	const headers, address = 52 + 32, 0x10000
	p := make([]byte, headers, headers+len(code))
	copy(p, m.header()[:24])
	le := binary.LittleEndian
	le.PutUint32(p[24:], address+headers) // entry
	le.PutUint32(p[28:], 52)              // where the program headers are
	le.PutUint16(p[40:], 52)              // size of this header
	le.PutUint16(p[42:], 32)              // size of a program header
	le.PutUint16(p[44:], 1)               // number of them
	if m.arch == "arm" {
		le.PutUint32(p[36:], 0x05000000) // flags: EABI version 5
	}
	size := uint32(headers + len(code))
	for i, v := range []uint32{1 /* load */, 0, address, address, size, size, 5 /* read, run */, 0x1000} {
		le.PutUint32(p[52+4*i:], v)
	}
	return append(p, code...)
}

// runs tells whether a program runs, and ends well.
func runs(program []byte) bool {
	f, err := memoryFile(program)
	if err != nil {
		return false
	}
	defer f.Close()
	for range 10 {
		cmd := exec.Cmd{Path: "/proc/self/fd/3", Args: []string{"probe"}, Env: []string{}, ExtraFiles: []*os.File{f}}
		err = cmd.Run()
		if !errors.Is(err, unix.ETXTBSY) {
			break
		}
		time.Sleep(10 * time.Millisecond) // another process that was just started had it open for writing
	}
	return err == nil
}

// memoryFile is a file that is on no disk, to be read only.
func memoryFile(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	w := os.NewFile(uintptr(fd), "probe")
	defer w.Close()
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	return os.Open("/proc/self/fd/" + strconv.Itoa(fd))
}
