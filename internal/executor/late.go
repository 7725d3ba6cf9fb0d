package executor

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
)

// LateProgram is the path in a container of the program that waits in place of
// the real one. Kiln, called by this name, calls [RunLate].
const LateProgram = "/dev/kiln-late"

// LateReady is what RunLate writes to its standard output when it waits. Nothing else
// comes out before the program that it becomes.
const LateReady = "ready\n"

// mostLateEnv bounds the environment that RunLate takes, encoded. The kernel takes
// less for a program that is started.
const mostLateEnv = 8 << 20

// LateEnv encodes environment variables, "K=V", as the first thing that RunLate
// reads: the length of what follows, four bytes in network order, and a list in JSON.
func LateEnv(env []string) ([]byte, error) {
	list, err := json.Marshal(env)
	if err != nil {
		return nil, fmt.Errorf("encode environment: %w", err)
	}
	if len(list) > mostLateEnv {
		return nil, fmt.Errorf("environment of %d bytes: expected at most %d", len(list), mostLateEnv)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(list))), list...), nil
}

// RunLate is a container's first process while nobody knows yet what for: it
// waits on its standard input for the last of its environment, see [LateEnv], and
// then becomes the program of args, with what is left of that input. It returns
// only if that fails.
func RunLate(stdin io.Reader, stdout io.Writer, args []string) error {
	if len(args) == 0 {
		return errors.New("start late: no program to become")
	}
	program, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("start late: %w", err)
	}
	if _, err := io.WriteString(stdout, LateReady); err != nil {
		return fmt.Errorf("start late: %w", err)
	}
	late, err := readLateEnv(stdin)
	if err != nil {
		return fmt.Errorf("start late: %w", err)
	}
	if err := syscall.Exec(program, args, overlayEnv(os.Environ(), late)); err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	return nil
}

// readLateEnv reads no byte more than it needs.
func readLateEnv(r io.Reader) (env []string, err error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, fmt.Errorf("read environment: %w", err)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > mostLateEnv {
		return nil, fmt.Errorf("read environment: %d bytes, expected at most %d", n, mostLateEnv)
	}
	list := make([]byte, n)
	if _, err := io.ReadFull(r, list); err != nil {
		return nil, fmt.Errorf("read environment: %w", err)
	}
	if err := json.Unmarshal(list, &env); err != nil {
		return nil, fmt.Errorf("read environment: %w", err)
	}
	return env, nil
}

// overlayEnv is env with variables of more, which count.
func overlayEnv(env, more []string) []string {
	name := func(e string) string { n, _, _ := strings.Cut(e, "="); return n }
	set := map[string]bool{}
	for _, m := range more {
		set[name(m)] = true
	}
	return append(slices.DeleteFunc(slices.Clone(env), func(e string) bool { return set[name(e)] }), more...)
}
