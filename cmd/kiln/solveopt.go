package main

import (
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
)

// solveOptions makes the request of a build out of the flags.
func solveOptions(e *env, cmd *cli.Command) (client.SolveOpt, error) {
	o := client.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{}}
	sets := []func(*env, *cli.Command, *client.SolveOpt) error{
		setContext, setNamedContexts, setAttrs, setRunAttrs, setSecrets, setCaches, setOutputs, setGraphAccess, setAttests,
	}
	switch n := cmd.Args().Len(); {
	case isGraphBuild(e, cmd):
		sets = append([]func(*env, *cli.Command, *client.SolveOpt) error{setAttrs, setRunAttrs, setGraph}, sets[4:]...)
	case n == 0:
		return o, usagef(cmd, "kiln build needs a PATH, such as: kiln build .")
	case n > 1:
		return o, usagef(cmd, "kiln build takes one PATH, not %d arguments: %q", n, cmd.Args().Slice())
	case cmd.IsSet("frontend"):
		o.Frontend = cmd.String("frontend")
	}
	for _, set := range sets {
		if err := set(e, cmd, &o); err != nil {
			return o, err
		}
	}
	return o, nil
}

// csvFields splits "a=1,b=2"; fields may be quoted.
func csvFields(s string) ([]string, error) {
	r := csv.NewReader(strings.NewReader(s))
	r.FieldsPerRecord = -1
	fields, err := r.Read()
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	return fields, nil
}

// joinCSV makes one list of values that may hold commas.
func joinCSV(values []string) (string, error) {
	var b strings.Builder
	w := csv.NewWriter(&b)
	if err := w.Write(values); err != nil {
		return "", err
	}
	w.Flush()
	return strings.TrimSuffix(b.String(), "\n"), w.Error()
}

// pairs reads values of the form NAME=VALUE. missing says what a name alone
// means, and whether it counts.
func pairs(cmd *cli.Command, flag string, missing func(string) (string, bool)) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range cmd.StringSlice(flag) {
		k, v, ok := strings.Cut(s, "=")
		if k == "" {
			return nil, usagef(cmd, "--%s %q: want NAME=VALUE", flag, s)
		}
		if !ok {
			if v, ok = missing(k); !ok {
				continue
			}
		}
		out[k] = v
	}
	return out, nil
}

// setAttrs sets what is for the frontend.
func setAttrs(e *env, cmd *cli.Command, o *client.SolveOpt) error {
	args, err := pairs(cmd, "build-arg", os.LookupEnv)
	if err != nil {
		return err
	}
	if epoch := e.getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		if _, set := args["SOURCE_DATE_EPOCH"]; !set {
			args["SOURCE_DATE_EPOCH"] = epoch
		}
	}
	for k, v := range args {
		o.FrontendAttrs["build-arg:"+k] = v
	}
	labels, err := pairs(cmd, "label", func(string) (string, bool) { return "", true })
	if err != nil {
		return err
	}
	for k, v := range labels {
		o.FrontendAttrs["label:"+k] = v
	}
	if v := cmd.String("target"); v != "" {
		o.FrontendAttrs["target"] = v
	}
	if v := cmd.StringSlice("platform"); len(v) > 0 {
		o.FrontendAttrs["platform"] = strings.Join(v, ",")
	}
	if cmd.Bool("pull") {
		o.FrontendAttrs["image-resolve-mode"] = "pull"
	}
	if v := cmd.String("cache-verify"); v != "" {
		o.FrontendAttrs["cache-verify"] = v
	}
	if v := cmd.StringSlice("no-cache-filter"); len(v) > 0 {
		o.FrontendAttrs["no-cache"] = strings.Join(v, ",")
	}
	if cmd.Bool("no-cache") {
		if cmd.IsSet("no-cache-filter") {
			return usagef(cmd, "--no-cache and --no-cache-filter exclude each other")
		}
		o.FrontendAttrs["no-cache"] = ""
	}
	return nil
}

// setRunAttrs sets what is for RUN.
func setRunAttrs(_ *env, cmd *cli.Command, o *client.SolveOpt) error {
	o.Entitlements, o.ProxyNetwork = cmd.StringSlice("allow"), cmd.Bool("proxy-network")
	for _, a := range o.Entitlements {
		if name, _, _ := strings.Cut(a, "="); !slices.Contains([]string{"network.host", "security.insecure", "device"}, name) {
			return usagef(cmd, "--allow %s: want network.host, security.insecure or device", a)
		}
	}
	switch v := cmd.String("network"); v {
	case "", "default":
	case "none":
		o.FrontendAttrs["force-network-mode"] = v
	case "host":
		o.FrontendAttrs["force-network-mode"] = v
		if !slices.Contains(o.Entitlements, "network.host") {
			o.Entitlements = append(o.Entitlements, "network.host")
		}
	default:
		return usagef(cmd, "--network %s: want default, none or host", v)
	}
	var hosts []string
	for _, h := range cmd.StringSlice("add-host") {
		i := strings.IndexAny(h, "=:")
		if i <= 0 || i == len(h)-1 {
			return usagef(cmd, "--add-host %q: want HOST=IP", h)
		}
		address, err := hostAddress(cmd, h, h[i+1:])
		if err != nil {
			return err
		}
		hosts = append(hosts, h[:i]+"="+address)
	}
	for key, values := range map[string][]string{"add-hosts": hosts, "ulimit": cmd.StringSlice("ulimit")} {
		if len(values) == 0 {
			continue
		}
		list, err := joinCSV(values)
		if err != nil {
			return err
		}
		o.FrontendAttrs[key] = list
	}
	if v := cmd.String("shm-size"); v != "" {
		n, err := parseSize(v)
		if err != nil {
			return usagef(cmd, "--shm-size: %v", err)
		}
		o.FrontendAttrs["shm-size"] = strconv.FormatInt(n, 10)
	}
	if v := cmd.String("cgroup-parent"); v != "" {
		o.FrontendAttrs["cgroup-parent"] = v
	}
	return addResources(o, cmd)
}

// addResources says what a RUN may use of the machine.
func addResources(o *client.SolveOpt, cmd *cli.Command) error {
	type limit struct{ flag, key, value string }
	var limits []limit
	for _, l := range cmd.StringSlice("resource") {
		key, value, _ := strings.Cut(l, "=")
		limits = append(limits, limit{"--resource " + l, key, value})
	}
	for _, name := range append(resourceHabits(), "memory") {
		if v := cmd.String(name); v != "" {
			limits = append(limits, limit{"--" + name, name, v})
		}
	}
	names := map[string]string{
		"memory": "memory", "memory-swap": "memswap", "cpu-shares": "cpushares", "cpu-period": "cpuperiod",
		"cpu-quota": "cpuquota", "cpuset-cpus": "cpusetcpus", "cpuset-mems": "cpusetmems",
	}
	for _, l := range limits {
		attr, ok := names[l.key]
		if !ok || l.value == "" {
			return usagef(cmd, "%s: want KEY=VALUE with one of the keys %s", l.flag, strings.Join(slices.Sorted(maps.Keys(names)), ", "))
		}
		if strings.HasPrefix(l.key, "memory") && l.value != "-1" { // which is no limit, for swap
			n, err := parseSize(l.value)
			if err != nil {
				return usagef(cmd, "%s: %v", l.flag, err)
			}
			l.value = strconv.FormatInt(n, 10)
		}
		o.FrontendAttrs[attr] = l.value
	}
	return nil
}

// parseSize reads a size such as "64m" or "1.5GiB" in bytes; units are powers of
// 1024.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(strings.ToLower(s), "ibkmgtp ")
	shift := map[string]int{"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
	unit := strings.TrimSpace(strings.ToLower(s)[len(digits):])
	by, ok := shift[strings.TrimSuffix(strings.TrimSuffix(unit, "b"), "i")]
	v, err := strconv.ParseFloat(digits, 64)
	if err != nil || !ok || !(v >= 0) || v*float64(int64(1)<<by) > 1<<62 {
		return 0, fmt.Errorf("size %q: want a number of bytes, also with k, m, g or t", s)
	}
	return int64(v * float64(int64(1)<<by)), nil
}

// setSecrets sets what steps may ask for.
func setSecrets(e *env, cmd *cli.Command, o *client.SolveOpt) error {
	for _, s := range cmd.StringSlice("secret") {
		secret, err := parseSecret(s)
		if err != nil {
			return usagef(cmd, "--secret: %v", err)
		}
		o.Attach.Secrets = append(o.Attach.Secrets, secret)
	}
	for _, s := range cmd.StringSlice("ssh") {
		id, socket, ok := strings.Cut(s, "=")
		if !ok {
			if socket = e.getenv("SSH_AUTH_SOCK"); socket == "" {
				return usagef(cmd, "--ssh %s: SSH_AUTH_SOCK names no ssh agent: start one with ssh-agent, or give %s=SOCKET", s, id)
			}
		}
		info, err := os.Stat(socket)
		if err != nil {
			return usagef(cmd, "--ssh %s: %v", s, err)
		}
		if info.Mode()&os.ModeSocket == 0 {
			return usagef(cmd, "--ssh %s: %s is no socket of an ssh agent; add keys to an agent with ssh-add", s, socket)
		}
		if o.Attach.SSH == nil {
			o.Attach.SSH = map[string]string{}
		}
		o.Attach.SSH[id] = socket
	}
	return nil
}

// parseSecret reads "id=NAME[,src=FILE|,env=VARIABLE]". With an id alone it is
// the variable of that name, if there is one, else the file.
func parseSecret(s string) (client.Secret, error) {
	fields, err := csvFields(s)
	if err != nil {
		return client.Secret{}, err
	}
	out, kind := client.Secret{}, ""
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return out, fmt.Errorf("%q: want id=NAME[,src=FILE|,env=VARIABLE], not %q", s, f)
		}
		switch strings.ToLower(k) {
		case "id":
			out.ID = v
		case "src", "source":
			out.File = v
		case "env":
			out.Env = v
		case "type":
			if v != "file" && v != "env" {
				return out, fmt.Errorf("%q: unknown type %q: want file or env", s, v)
			}
			kind = v
		case "cache-key":
			yes, err := strconv.ParseBool(v)
			if err != nil {
				return out, fmt.Errorf("%q: cache-key is %q: want true or false", s, v)
			}
			out.CacheKey = yes
		default:
			return out, fmt.Errorf("%q: unknown key %q: want id, src, env, type or cache-key", s, k)
		}
	}
	if out.ID == "" {
		return out, fmt.Errorf("%q: want id=NAME", s)
	}
	if kind == "env" && out.Env == "" {
		out.Env, out.File = out.File, ""
	}
	if out.Env == "" && out.File == "" {
		if _, ok := os.LookupEnv(out.ID); ok && kind != "file" || kind == "env" {
			out.Env = out.ID
		} else {
			out.File = out.ID
		}
	}
	return out, nil
}

// setCaches sets where cache comes from and goes to.
func setCaches(e *env, cmd *cli.Command, o *client.SolveOpt) error {
	var err error
	if o.CacheExports, err = cacheEntries(e, cmd, "cache-to"); err != nil {
		return err
	}
	o.CacheImports, err = cacheEntries(e, cmd, "cache-from")
	return err
}

func cacheEntries(e *env, cmd *cli.Command, flag string) ([]client.CacheEntry, error) {
	var out []client.CacheEntry
	for _, s := range cmd.StringSlice(flag) {
		if !strings.Contains(s, "=") {
			out = append(out, client.CacheEntry{Type: "registry", Attrs: map[string]string{"ref": s}})
			continue
		}
		attrs, err := attributes(s)
		if err != nil {
			return nil, usagef(cmd, "--%s: %v", flag, err)
		}
		kind := attrs["type"]
		if kind == "" {
			return nil, usagef(cmd, "--%s %q: want type=TYPE", flag, s)
		}
		delete(attrs, "type")
		if want := cacheLack(strings.HasSuffix(flag, "to"), kind, attrs); want != "" {
			return nil, usagef(cmd, "--%s %s: want %s", flag, s, want)
		}
		if err := addCacheLogin(kind, attrs, e.getenv); err != nil {
			return nil, usagef(cmd, "--%s %q: %v", flag, s, err)
		}
		out = append(out, client.CacheEntry{Type: kind, Attrs: attrs})
	}
	return out, nil
}

// withoutCache are the folders that cache is to come from and that have none: a first
// build has none yet, but a name may be misspelled, too.
func withoutCache(imports []client.CacheEntry) (dirs []string) {
	for _, e := range imports {
		if e.Type != "local" || e.Attrs["src"] == "" { // which is refused
			continue
		}
		if _, err := os.Stat(filepath.Join(e.Attrs["src"], "index.json")); errors.Is(err, fs.ErrNotExist) {
			dirs = append(dirs, e.Attrs["src"])
		}
	}
	return dirs
}

// cacheLack says what is to be given of a cache's place and is not; "" if nothing is.
func cacheLack(export bool, kind string, attrs map[string]string) string {
	switch {
	case kind == "registry" && attrs["ref"] == "":
		return "its name, ref=HOST/NAME"
	case kind == "local" && export && attrs["dest"] == "":
		return "its folder, dest=DIR"
	case kind == "local" && !export && attrs["src"] == "":
		return "its folder, src=DIR"
	}
	return ""
}

// attributes reads "KEY=VALUE,...". What has no key after "mounts=ID" is a
// further id.
func attributes(s string) (map[string]string, error) {
	fields, err := csvFields(s)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	last := ""
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok && last == "mounts" && f != "" {
			out[last] += "," + f
			continue
		}
		if k = strings.ToLower(strings.TrimSpace(k)); !ok || k == "" {
			return nil, fmt.Errorf("%q: want KEY=VALUE, not %q", s, f)
		}
		out[k], last = v, k
	}
	return out, nil
}

// metadataJSON is the content of --metadata-file: values that are JSON in base64
// become JSON.
func metadataJSON(r *client.Result) ([]byte, error) {
	out := map[string]any{"kiln.build.ref": r.Ref}
	for _, k := range slices.Sorted(maps.Keys(r.Response)) {
		v := r.Response[k]
		out[k] = v
		if raw, err := base64.StdEncoding.DecodeString(v); err == nil && len(raw) > 0 && raw[0] == '{' && json.Valid(raw) {
			out[k] = json.RawMessage(raw)
		}
	}
	b, err := json.MarshalIndent(out, "", "  ")
	return append(b, '\n'), err
}
