package config

import (
	"path/filepath"
	"strings"
)

// Places are where a daemon's files are unless it is told otherwise.
type Places struct {
	File    string // the configuration
	Root    string
	Address string
}

// DefaultPlaces are the machine's, or the user's own in rootless mode.
func DefaultPlaces(getenv func(string) string, rootless bool) Places {
	p := Places{
		File: "/etc/buildkit/buildkitd.toml", Root: "/var/lib/buildkit",
		Address: "unix:///run/buildkit/buildkitd.sock",
	}
	if !rootless {
		return p
	}
	home := getenv("HOME")
	if dir := getenv("XDG_CONFIG_HOME"); dir != "" {
		p.File = filepath.Join(dir, "buildkit", "buildkitd.toml")
	} else if home != "" {
		p.File = filepath.Join(home, ".config", "buildkit", "buildkitd.toml")
	}
	if dir := first(getenv("XDG_DATA_HOME")); dir != "" {
		p.Root = filepath.Join(dir, "buildkit")
	} else if home != "" {
		p.Root = filepath.Join(home, ".local", "share", "buildkit")
	}
	if dir := first(getenv("XDG_RUNTIME_DIR")); dir != "" {
		p.Address = "unix://" + filepath.Join(dir, "buildkit", "buildkitd.sock")
	}
	return p
}

// first is the first of a list of folders.
func first(list string) string {
	dir, _, _ := strings.Cut(list, ":")
	return dir
}
