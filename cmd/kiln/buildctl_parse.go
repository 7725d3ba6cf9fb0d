package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"

	"github.com/kiln-build/kiln/client"
)

// keyValues reads "KEY=VALUE" words.
func keyValues(words []string) (map[string]string, error) {
	out := map[string]string{}
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			return nil, fmt.Errorf("invalid value %s", w)
		}
		out[k] = v
	}
	return out, nil
}

// csvAttrs reads "type=TYPE,KEY=VALUE,..."; keys are in any case of letters.
func csvAttrs(s string) (kind string, attrs map[string]string, err error) {
	fields, err := csvFields(s)
	if err != nil {
		return "", nil, err
	}
	attrs = map[string]string{}
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return "", nil, fmt.Errorf("invalid value %s", f)
		}
		if k = strings.ToLower(k); k == "type" {
			kind = v
		} else {
			attrs[k] = v
		}
	}
	return kind, attrs, nil
}

// frontendOpts reads --opt. A build argument without a value has that of the
// environment.
func frontendOpts(e *env, words []string) (map[string]string, error) {
	out := map[string]string{}
	if v := e.getenv("SOURCE_DATE_EPOCH"); v != "" {
		out["build-arg:SOURCE_DATE_EPOCH"] = v
	}
	var complete []string
	for _, w := range words {
		if name, ok := strings.CutPrefix(w, "build-arg:"); ok && name != "" && !strings.Contains(name, "=") {
			v, set := os.LookupEnv(name)
			if !set {
				continue // the default of the Dockerfile holds
			}
			w += "=" + v
		}
		complete = append(complete, w)
	}
	given, err := keyValues(complete)
	maps.Copy(out, given)
	return out, err
}

// localDirs reads --local.
func localDirs(words []string) (map[string]string, error) {
	dirs, err := keyValues(words)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(dirs)) {
		info, err := os.Stat(dirs[name])
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			return nil, fmt.Errorf("%s is not a directory", dirs[name])
		}
	}
	return dirs, nil
}

// layoutStores reads --oci-layout. A directory need not be marked as a layout.
func layoutStores(words []string) (map[string]content.Store, error) {
	out := map[string]content.Store{}
	for _, w := range words {
		id, dir, ok := strings.Cut(w, "=")
		if !ok {
			return nil, fmt.Errorf("oci-layout option must be 'id=path/to/layout', instead had invalid %s", w)
		}
		store, err := local.NewStore(dir)
		if err != nil {
			return nil, fmt.Errorf("oci-layout context at %s failed to initialize: %w", dir, err)
		}
		out[id] = store
	}
	return out, nil
}

// sshAgents reads --ssh.
func sshAgents(words []string) (map[string]client.SSHAgent, error) {
	out := map[string]client.SSHAgent{}
	for _, w := range words {
		id, value, ok := strings.Cut(w, "=")
		var a client.SSHAgent
		for p := range strings.SplitSeq(value, ",") {
			if raw, isRaw := strings.CutPrefix(p, "raw="); isRaw {
				var err error
				if a.Raw, err = strconv.ParseBool(raw); err != nil {
					return nil, fmt.Errorf("invalid value for 'raw': %s: %w", raw, err)
				}
			} else if ok {
				a.Paths = append(a.Paths, p)
			}
		}
		if a.Raw && len(a.Paths) != 1 {
			return nil, fmt.Errorf("raw mode must supply exactly one socket path for %q", id)
		}
		if id == "" {
			id = "default"
		}
		if _, twice := out[id]; twice {
			return nil, fmt.Errorf("duplicate agent ID %q", id)
		}
		out[id] = a
	}
	return out, nil
}

// secretSources reads --secret.
func secretSources(words []string) ([]client.Secret, error) {
	var out []client.Secret
	for _, w := range words {
		s, err := secretSource(w)
		if err != nil {
			return nil, err
		}
		if s.File != "" {
			if _, err := os.Stat(s.File); err != nil {
				return nil, fmt.Errorf("failed to stat %s: %w", s.File, err)
			}
		}
		out = append(out, s)
	}
	return out, nil
}

func secretSource(word string) (client.Secret, error) {
	s := client.Secret{EmptyIfUnset: true}
	fields, err := csvFields(word)
	if err != nil {
		return s, fmt.Errorf("failed to parse csv secret: %w", err)
	}
	kind := ""
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return s, fmt.Errorf("invalid field '%s' must be a key=value pair", f)
		}
		switch k = strings.ToLower(k); k {
		case "type":
			if kind = v; v != "file" && v != "env" {
				return s, fmt.Errorf("unsupported secret type %q", v)
			}
		case "id":
			s.ID = v
		case "source", "src":
			s.File = v
		case "env":
			s.Env = v
		case "cache-key": // Kiln's own
			if s.CacheKey, err = strconv.ParseBool(v); err != nil {
				return s, fmt.Errorf("invalid value %q of cache-key: want true or false", v)
			}
		default:
			return s, fmt.Errorf("unexpected key '%s' in '%s'", k, f)
		}
	}
	if s.ID == "" {
		return s, errors.New("secret missing ID")
	}
	if kind == "env" && s.Env == "" {
		s.Env, s.File = s.File, ""
	}
	if s.Env == "" && s.File == "" {
		if _, set := os.LookupEnv(s.ID); set {
			s.Env = s.ID
		} else {
			s.File = s.ID
		}
	}
	return s, nil
}

// checkEntitlements checks --allow.
func checkEntitlements(words []string) error {
	for _, w := range words {
		switch name, rest, _ := strings.Cut(w, "="); {
		case w == "network.host", w == "security.insecure":
		case name != "device":
			return fmt.Errorf("unknown entitlement %s", w)
		case rest != "":
			if err := checkDevice(rest); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkDevice checks "NAME[,alias=OTHER]".
func checkDevice(s string) error {
	fields, err := csvFields(s)
	if err != nil {
		return err
	}
	for _, f := range fields[1:] {
		k, _, ok := strings.Cut(f, "=")
		if !ok {
			return fmt.Errorf("invalid device config %q", f)
		}
		if k != "alias" {
			return fmt.Errorf("unknown device config key %q", k)
		}
	}
	return nil
}

// exports reads --output.
func (b *buildctl) exports(words []string) ([]client.Export, error) {
	var out []client.Export
	for _, w := range words {
		kind, attrs, err := csvAttrs(w)
		switch {
		case err != nil:
			return nil, err
		case kind == "":
			return nil, errors.New("--output requires type=<type>")
		case attrs["output"] != "":
			return nil, fmt.Errorf("output=%s not supported for --output, you meant dest=%s?", attrs["output"], attrs["output"])
		}
		x := client.Export{Type: kind, Attrs: attrs}
		if err := b.setDestination(&x); err != nil {
			return nil, fmt.Errorf("invalid output option: output: %w", err)
		}
		out = append(out, x)
	}
	return out, nil
}

// setDestination sets where an export goes on this side.
func (b *buildctl) setDestination(x *client.Export) error {
	dest := x.Attrs["dest"]
	file, dir := false, false
	switch x.Type {
	case "local":
		dir = true
		switch mode := x.Attrs["mode"]; mode {
		case "", "copy":
		case "delete":
			x.DeleteOthers = true
		default:
			return fmt.Errorf("invalid local exporter mode %q", mode)
		}
	case "tar":
		file = true
	case "oci", "docker":
		tar, err := strconv.ParseBool(x.Attrs["tar"])
		file = err != nil || tar
		dir = !file
	default:
		if dest != "" {
			return fmt.Errorf("output %s is not supported by %s exporter", dest, x.Type)
		}
		return nil
	}
	delete(x.Attrs, "dest")
	switch {
	case dir && dest == "":
		return fmt.Errorf("output directory is required for %s exporter", x.Type)
	case dir && x.Type == "local":
		x.Dir = dest
	case dir:
		x.Layout = dest
	case file && dest != "" && dest != "-":
		info, err := os.Stat(dest)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("invalid destination file: %s: %w", dest, err)
		}
		if err == nil && info.IsDir() {
			return errors.New("destination file is a directory")
		}
		if err := checkPlace(dest); err != nil {
			return fmt.Errorf("invalid destination file: %s: %w", dest, err)
		}
		x.File = dest
	case isTerminal(b.stdout):
		return fmt.Errorf("output file is required for %s exporter. refusing to write to console", x.Type)
	default:
		x.Writer = b.stdout
	}
	return nil
}

// caches reads --export-cache or --import-cache.
func (b *buildctl) caches(flag string, words []string) ([]client.CacheEntry, error) {
	var out []client.CacheEntry
	for _, w := range words {
		if !strings.Contains(w, "type=") {
			b.log.Warn("--" + flag + " <ref> is deprecated. Please use --" + flag + " type=registry,ref=<ref>,<opt>=<optval>[,<opt>=<optval>] instead.")
			out = append(out, client.CacheEntry{Type: "registry", Attrs: map[string]string{"ref": w}})
			continue
		}
		kind, attrs, err := csvAttrs(w)
		if err != nil {
			return nil, err
		}
		if kind == "" {
			return nil, fmt.Errorf("--%s requires type=<type>", flag)
		}
		if kind == "gha" {
			if err := addGitHub(attrs, b.getenv); err != nil {
				return nil, err
			}
		}
		out = append(out, client.CacheEntry{Type: kind, Attrs: attrs})
	}
	if flag == "export-cache" {
		for _, e := range out {
			if _, ok := e.Attrs["mode"]; !ok {
				e.Attrs["mode"] = "min"
			}
		}
	}
	return out, nil
}
