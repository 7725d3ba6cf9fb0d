package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// place is where a user's own daemon is.
type place struct {
	root   string // folder of its state
	socket string
	log    string
	lock   string // held while it is started
}

// ownPlace returns where the own daemon of a user is. KILN_ROOT moves all of it.
func ownPlace(getenv func(string) string, uid int) (place, error) {
	p := place{root: getenv("KILN_ROOT")}
	switch runtime := getenv("XDG_RUNTIME_DIR"); {
	case p.root != "":
		abs, err := filepath.Abs(p.root)
		if err != nil {
			return place{}, fmt.Errorf("KILN_ROOT: %w", err)
		}
		p.root, p.socket = abs, filepath.Join(abs, "kiln.sock")
	case uid == 0:
		p.root, p.socket = "/var/lib/kiln", "/run/kiln/kiln.sock"
	default:
		data := getenv("XDG_DATA_HOME")
		if data == "" {
			home := getenv("HOME")
			if home == "" {
				return place{}, errors.New("there is no HOME for the daemon's state: set KILN_ROOT to a folder")
			}
			data = filepath.Join(home, ".local", "share")
		}
		p.root = filepath.Join(data, "kiln")
		p.socket = filepath.Join(p.root, "kiln.sock")
		if runtime != "" && roomFor(filepath.Join(runtime, "kiln")) {
			p.socket = filepath.Join(runtime, "kiln", "kiln.sock")
		}
	}
	p.log, p.lock = filepath.Join(p.root, "daemon.log"), filepath.Join(p.root, "start.lock")
	return p, nil
}

// roomFor tells whether a folder is there and can be written, or can be made.
// After "su" or "sudo -u", XDG_RUNTIME_DIR is often another user's.
func roomFor(dir string) bool {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		dir = filepath.Dir(dir)
		info, err = os.Stat(dir)
	}
	return err == nil && info.IsDir() && unix.Access(dir, unix.W_OK|unix.X_OK) == nil
}

func (p place) address() string { return "unix://" + p.socket }
