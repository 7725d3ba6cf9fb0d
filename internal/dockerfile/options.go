package dockerfile

import (
	"encoding/csv"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// options are a request's options, decoded (BuildKit's frontend/dockerui).
type options struct {
	target         string
	filename       string
	context        string  // a URL, or "" for the local directory
	dockerfileName string  // the local directory of the Dockerfile
	forceLocalFile bool    // read the Dockerfile from there even if the context is remote
	subdir         *string // what of a remote context is the context; nil for all

	buildArgs map[string]string
	labels    map[string]string
	contexts  map[string]string // named contexts
	metadata  map[string]string // image configs of contexts that are inputs, JSON

	sessions   map[string]string // ids of the sessions that have local directories, where it is not the build's
	sharedKeys map[string]string // what tells one directory of a client from others

	platforms     []ocispecs.Platform // empty means the worker's
	multiPlatform bool
	noCache       []string // stages; not nil and empty means all

	cacheNamespace string
	cgroupParent   string
	hostname       string
	resolveMode    string
	network        llb.NetMode
	shmSize        int64
	hosts          []llb.HostIP
	ulimits        []llb.Ulimit
	resources      *llb.LinuxResources
	keepGitDir     bool        // of the main context
	gitAdvice      bool        // git may give advice
	check          *lintConfig // takes the place of the "check" directive
	request        string      // a subrequest's name, see request.go; "" builds
	missing        error       // what a frontend in this one's place may have
}

// decodeOptions reads a request's options.
func decodeOptions(opts map[string]string) (*options, error) {
	o := &options{
		target: opts["target"], filename: "Dockerfile", dockerfileName: "dockerfile", cgroupParent: opts["cgroup-parent"], hostname: opts["hostname"],
		buildArgs: withPrefix(opts, "build-arg:"), labels: withPrefix(opts, "label:"),
		contexts: withPrefix(opts, "context:"), metadata: withPrefix(opts, "input-metadata:"),
		sharedKeys: withPrefix(opts, "sharedkey:localdir:"), sessions: withPrefix(opts, "local-sessionid:"),
	}
	if v, ok := opts["filename"]; ok {
		o.filename = v
	}
	if v, ok := opts["dockerfilekey"]; ok {
		o.dockerfileName, o.forceLocalFile = v, true
	}
	if v, ok := opts["contextsubdir"]; ok {
		o.subdir = &v
	}
	// The name of an option, not of a directory: that is always the same.
	key := contextName
	if v, ok := opts["contextkey"]; ok {
		key = v
	}
	o.context = opts[key]
	// As for BuildKit, anything but a bool leaves the directory out.
	o.keepGitDir, _ = strconv.ParseBool(o.buildArgs["BUILDKIT_CONTEXT_KEEP_GIT_DIR"])
	o.cacheNamespace = o.buildArgs["BUILDKIT_CACHE_MOUNT_NS"]
	if v := o.buildArgs["BUILDKIT_SANDBOX_HOSTNAME"]; v != "" {
		o.hostname = v
	}
	if v, ok := opts["no-cache"]; ok {
		o.noCache = []string{}
		if v != "" {
			o.noCache = strings.Split(v, ",")
		}
	}
	for _, decode := range []func(*options, map[string]string) error{
		checkRequest, decodePlatforms, decodeModes, decodeHosts, decodeUlimits, decodeResources,
	} {
		if err := decode(o, opts); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// contextName is what the client calls the directory of the main context.
const contextName = "context"

func withPrefix(opts map[string]string, prefix string) map[string]string {
	out := map[string]string{}
	for k, v := range opts {
		if name, ok := strings.CutPrefix(k, prefix); ok {
			out[name] = v
		}
	}
	return out
}

// supportedCaps are the frontend capabilities of BuildKit's solver/pb/caps.go that
// are here.
func supportedCaps() []string {
	return []string{"moby.buildkit.frontend.inputs", "moby.buildkit.frontend.contexts", "moby.buildkit.frontend.subrequests", "moby.buildkit.frontend.gitquerystring", "moby.buildkit.frontend.contexts.zstd"}
}

// checkRequest refuses what a request asks for and this frontend does not do.
func checkRequest(o *options, opts map[string]string) error {
	var asked bool
	if o.request, asked = opts["requestid"]; asked && !isRequest(o.request) {
		return &frontend.UnsupportedError{Kind: "subrequest", Name: o.request}
	}
	if opts["override-copy-image"] != "" {
		return errors.New("option override-copy-image is no longer supported (since BuildKit 0.11): leave it out, copies need no image")
	}
	const disable = "BUILDKIT_DISABLE_FILEOP"
	if on, err := strconv.ParseBool(o.buildArgs[disable]); err == nil && on {
		return fmt.Errorf("build argument %s is no longer supported (since BuildKit 0.11): leave it out", disable)
	}
	for want := range strings.SplitSeq(opts["frontend.caps"], ",") {
		want, how, _ := strings.Cut(strings.TrimSpace(want), "+")
		if want == "" || slices.Contains(supportedCaps(), want) {
			continue
		}
		o.missing = &frontend.UnsupportedError{Kind: "capability", Name: want}
		if how != "forward" {
			return o.missing
		}
	}
	return nil
}

func decodePlatforms(o *options, opts map[string]string) error {
	if list := opts["platform"]; list != "" {
		for name := range strings.SplitSeq(list, ",") {
			p, err := platforms.Parse(strings.TrimSpace(name))
			if err != nil {
				return fmt.Errorf("read option platform: %w (expected OS[/ARCH[/VARIANT]], such as linux/arm64)", err)
			}
			o.platforms = append(o.platforms, platforms.Normalize(p))
		}
	}
	o.multiPlatform = len(o.platforms) > 1
	v := opts["multi-platform"]
	if arg := o.buildArgs["BUILDKIT_MULTI_PLATFORM"]; arg != "" {
		v = arg
	}
	if v == "" {
		return nil
	}
	multi, err := strconv.ParseBool(v)
	if err != nil {
		return fmt.Errorf("read option multi-platform: %q is neither true nor false", v)
	}
	if !multi && o.multiPlatform {
		return fmt.Errorf("read option multi-platform: it is false but %d platforms are to be built", len(o.platforms))
	}
	o.multiPlatform = multi
	return nil
}

func decodeModes(o *options, opts map[string]string) error {
	switch v := opts["image-resolve-mode"]; v {
	case "":
		o.resolveMode = "default"
	case "default", "pull", "local":
		o.resolveMode = v
	default:
		return fmt.Errorf("read option image-resolve-mode: %q, expected default, pull or local", v)
	}
	switch v := opts["force-network-mode"]; v {
	case "", "sandbox":
		o.network = llb.NetSandbox
	case "host":
		o.network = llb.NetHost
	case "none":
		o.network = llb.NetNone
	default:
		return fmt.Errorf("read option force-network-mode: %q, expected sandbox, host or none", v)
	}
	if v := opts["shm-size"]; v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("read option shm-size: %q, expected a number of bytes", v)
		}
		o.shmSize = n
	}
	if v := o.buildArgs["BUILDKIT_GIT_ADVICE"]; v != "" {
		advice, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("read build argument BUILDKIT_GIT_ADVICE: %q is neither true nor false", v)
		}
		o.gitAdvice = advice
	}
	if v, ok := o.buildArgs["BUILDKIT_DOCKERFILE_CHECK"]; ok {
		c, err := parseCheck(v)
		if err != nil {
			return fmt.Errorf("read build argument BUILDKIT_DOCKERFILE_CHECK: %w", err)
		}
		o.check = c
	}
	return nil
}

// csvFields splits a list by commas; fields may be quoted.
func csvFields(v string) ([]string, error) {
	if v == "" {
		return nil, nil
	}
	return csv.NewReader(strings.NewReader(v)).Read()
}

func decodeHosts(o *options, opts map[string]string) error {
	fields, err := csvFields(opts["add-hosts"])
	if err != nil {
		return fmt.Errorf("read option add-hosts: %w", err)
	}
	for _, f := range fields {
		host, ip, ok := strings.Cut(strings.ToLower(f), "=")
		if !ok {
			return fmt.Errorf("read option add-hosts: %q, expected host=ip", f)
		}
		addr, err := netip.ParseAddr(strings.Trim(ip, "[]"))
		if err != nil {
			return fmt.Errorf("read option add-hosts: %q of host %s is no IP address", ip, host)
		}
		o.hosts = append(o.hosts, llb.HostIP{Host: host, IP: addr.Unmap().String()})
	}
	return nil
}

func decodeUlimits(o *options, opts map[string]string) error {
	fields, err := csvFields(opts["ulimit"])
	if err != nil {
		return fmt.Errorf("read option ulimit: %w", err)
	}
	names := []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile",
		"nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		soft, hard, both := strings.Cut(value, ":")
		if !both {
			hard = soft
		}
		s, err1 := strconv.ParseInt(soft, 10, 64)
		h, err2 := strconv.ParseInt(hard, 10, 64)
		if !slices.Contains(names, name) || err1 != nil || err2 != nil || (h != -1 && (s > h || s == -1)) {
			return fmt.Errorf("read option ulimit: %q, expected name=soft[:hard] with soft at most hard, and a name of %s",
				f, strings.Join(names, ", "))
		}
		o.ulimits = append(o.ulimits, llb.Ulimit{Name: name, Soft: s, Hard: h})
	}
	return nil
}

// maxCPU is the highest number of a processor or a memory node that is taken, as
// BuildKit has it.
const maxCPU = 8192

// isCPUList tells whether a text is a list of numbers and ranges, such as 0-3,5.
func isCPUList(text string) bool {
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		low, err1 := strconv.Atoi(strings.TrimSpace(first))
		high, err2 := strconv.Atoi(strings.TrimSpace(last))
		if err1 != nil || err2 != nil || low < 0 || high < low || high > maxCPU {
			return false
		}
	}
	return true
}

func decodeResources(o *options, opts map[string]string) error {
	var r llb.LinuxResources
	number := func(key string, into *int64, unlimited bool) error {
		v := opts[key]
		if v == "" {
			return nil
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || (n <= 0 && (!unlimited || n != -1)) {
			return fmt.Errorf("read option %s: %q, expected a number above 0", key, v)
		}
		*into = n
		return nil
	}
	var shares, period int64
	for _, err := range []error{
		number("memory", &r.Memory, false), number("memswap", &r.MemorySwap, true), number("cpuquota", &r.CPUQuota, false),
		number("cpushares", &shares, false), number("cpuperiod", &period, false),
	} {
		if err != nil {
			return err
		}
	}
	r.CPUShares, r.CPUPeriod = uint64(shares), uint64(period)
	r.CpusetCpus, r.CpusetMems = opts["cpusetcpus"], opts["cpusetmems"]
	for key, v := range map[string]string{"cpusetcpus": r.CpusetCpus, "cpusetmems": r.CpusetMems} {
		if !isCPUList(v) {
			return fmt.Errorf("read option %s: %q, expected a list such as 0-3,5", key, v)
		}
	}
	if r != (llb.LinuxResources{}) {
		o.resources = &r
	}
	return nil
}

// ignoresCache reports whether the stage called name is built without cache.
func (o *options) ignoresCache(name string) bool {
	if o.noCache == nil {
		return false
	}
	return len(o.noCache) == 0 || slices.ContainsFunc(o.noCache, func(n string) bool { return strings.EqualFold(n, name) })
}

// proxy is what the proxy build arguments say, nil if there are none.
func (o *options) proxy() *llb.ProxyEnv {
	var p llb.ProxyEnv
	found := false
	for _, k := range slices.Sorted(maps.Keys(o.buildArgs)) {
		v := o.buildArgs[k]
		into := map[string]*string{
			"http_proxy": &p.HTTPProxy, "https_proxy": &p.HTTPSProxy, "ftp_proxy": &p.FTPProxy, "no_proxy": &p.NoProxy, "all_proxy": &p.AllProxy,
		}[strings.ToLower(k)]
		if into != nil {
			*into, found = v, true
		}
	}
	if !found {
		return nil
	}
	return &p
}
