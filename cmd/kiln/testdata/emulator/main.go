// Command emulator stands in for an emulator of other processors, in tests. The
// programs that it runs are the machine's own behind the header of a foreign one.
//
//	emulator within REGISTRATION PROGRAM ARG...
//
// registers it, in a user namespace that has its own register, and becomes the program.
// By the kernel it is called with the path of a foreign program and what follows its name.
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// header is how many bytes of a foreign program are not the machine's own.
const header = 64

func main() {
	run := emulate
	if len(os.Args) > 3 && os.Args[1] == "within" {
		run = within
	}
	fmt.Fprintln(os.Stderr, "emulator:", run(os.Args[1:]))
	os.Exit(1)
}

// within becomes the program, or returns why not.
func within(args []string) error {
	const register = "/proc/sys/fs/binfmt_misc"
	if err := unix.Mount("binfmt_misc", register, "binfmt_misc", 0, ""); err != nil {
		return fmt.Errorf("mount binfmt_misc in a user namespace, which takes Linux 6.7 or later with CONFIG_BINFMT_MISC: %w", err)
	}
	if err := os.WriteFile(register+"/register", []byte(args[1]), 0); err != nil {
		return fmt.Errorf("register %s: %w", args[1], err)
	}
	return unix.Exec(args[2], args[2:], os.Environ())
}

// emulate runs the foreign program, which is told by whom, or returns why not.
func emulate(args []string) error {
	in, err := os.Open(args[0])
	if err != nil {
		return err
	}
	if _, err := in.Seek(header, io.SeekStart); err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("program", 0)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), "program")
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	own, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd)) // what is open for writing does not run
	if err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return unix.Exec("/proc/self/fd/"+strconv.Itoa(int(own.Fd())), args, append(os.Environ(), "EMULATOR=an emulator"))
}
