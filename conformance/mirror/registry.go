package mirror

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
)

// config is of the registry: BuildKit's harness takes the same file.
const config = `version: 0.1
loglevel: debug
storage:
    filesystem:
        rootdirectory: %s
http:
    addr: 127.0.0.1:0
validation:
    manifests:
        urls:
            allow:
                - ^http://127\.0\.0\.1:9/
`

// registry is a running registry program.
type registry struct {
	host string // such as "localhost:41234"
	cmd  *exec.Cmd
}

var listening = regexp.MustCompile(`listening on 127\.0\.0\.1:(\d+)`)

// serve starts a registry over dir and returns when it listens.
func serve(ctx context.Context, dir string) (*registry, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, config, filepath.Join(dir, "data")), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "registry", "serve", file)
	log, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the registry: %w", err)
	}
	r := &registry{cmd: cmd}
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			r.host = "localhost:" + m[1]
			go func() {
				for lines.Scan() { // else the registry blocks once the pipe is full
				}
			}()
			return r, nil
		}
	}
	r.stop()
	return nil, errors.New("the registry ended, or closed its log, before it listened")
}

func (r *registry) stop() {
	_ = r.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	_ = r.cmd.Wait()                          // the signal is its exit status
}
