package op

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/proxy"
	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/llb"
)

// ProxyNetwork is what a job wants of the network of its steps.
type ProxyNetwork struct {
	// On has steps reach the network through the worker's proxy alone.
	On bool
	// Check decides on their requests; nil lets all of them pass.
	Check proxy.Check
	// Ran is told what a step asked for, by its vertex. Nil for nobody.
	Ran func(vertex digest.Digest, what proxy.Record)
}

// proxied tells whether a process of a job has the proxy for its network.
func (j *Job) proxied(m llb.NetMode) bool { return j != nil && j.Proxy.On && m != llb.NetNone }

// saltProxied makes another key of a step's: what ran with a free network is not
// the result of a step that may have none.
func saltProxied(d string) string {
	sum := sha256.Sum256([]byte(d + "\x00buildkit.proxy-network.v0"))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// proxies are what the jobs want that a step is carried out for. They may be
// many, and more may come: each is asked about each request.
type proxies struct{ ctx context.Context }

func (p proxies) jobs() (out []*Job) {
	for _, v := range solver.Values(p.ctx) {
		if j, ok := v.(*Job); ok && j.Proxy.On {
			out = append(out, j)
		}
	}
	return out
}

func (p proxies) check(ctx context.Context, method, url string) (string, error) {
	became := ""
	for _, j := range p.jobs() {
		to := url
		if j.Proxy.Check != nil {
			var err error
			if to, err = j.Proxy.Check(ctx, method, url); err != nil {
				return "", err
			}
		}
		if became != "" && became != to {
			return "", fmt.Errorf("the policies of two builds that share a step make %s and %s of %s", became, to, url)
		}
		became = to
	}
	if became == "" {
		return "", errors.New("no build wants the step any more")
	}
	return became, nil
}

// runProxied runs a step whose only network is the proxy.
func (o *execOp) runProxied(ctx context.Context, spec executor.Spec) error {
	all := proxies{ctx}
	run, restore, err := o.worker.proxy(&spec, all.check)
	if err != nil {
		return err
	}
	err = o.run(ctx, spec)
	if rerr := restore(); rerr != nil {
		err = errors.Join(err, rerr)
	}
	record := run.Record()
	tell(progress.StepFrom(ctx).Log(2), record)
	for _, j := range all.jobs() {
		if j.Proxy.Ran != nil {
			j.Proxy.Ran(o.vertex.Digest(), record)
		}
	}
	return err
}

// tell lists what a step asked the network for, in BuildKit's words, for those
// who look for them in logs.
func tell(w io.Writer, r proxy.Record) {
	if len(r.Requests) == 0 {
		return
	}
	var b bytes.Buffer
	fmt.Fprintln(&b, "proxy network requests:")
	for _, q := range r.Requests {
		fmt.Fprintf(&b, "- %s %s -> %d\n", q.Method, q.URL, q.Status)
	}
	_, _ = w.Write(b.Bytes()) // a log that is not wanted is no reason to fail
}

// proxy gives a run the proxy for its network, and has its files trust it until
// restore is called.
func (w *Worker) proxy(spec *executor.Spec, check proxy.Check) (_ *proxy.Run, restore func() error, err error) {
	if w.Proxy == nil {
		return nil, nil, errors.New("this daemon has no proxy network")
	}
	run, err := w.Proxy.NewRun(check)
	if err != nil {
		return nil, nil, fmt.Errorf("ready the proxy network: %w", err)
	}
	spec.Proxy = run
	if spec.ReadOnlyRoot {
		return run, func() error { return nil }, nil // its files can not be changed, for nobody
	}
	restore, err = trust(spec.Root, run.CA())
	if err != nil {
		return nil, nil, fmt.Errorf("have the step trust the proxy network: %w", err)
	}
	return run, restore, nil
}

// bundles returns where systems have the authorities that their programs trust.
func bundles() []string {
	return []string{
		"/etc/ssl/certs/ca-certificates.crt",                // Debian, Alpine, Arch
		"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora
		"/etc/ssl/ca-bundle.pem",                            // openSUSE
		"/etc/pki/tls/cacert.pem",                           // OpenELEC
		"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // RHEL 7
		"/etc/ssl/cert.pem",                                 // Alpine without the package
	}
}

// maxBundle caps a file of authorities, which comes from an image.
const maxBundle = 10 << 20

// The marks around what is added are BuildKit's, by which scripts find it.
const (
	beginMark = "\n# buildkit proxy CA begin\n"
	endMark   = "# buildkit proxy CA end\n"
)

// trust adds an authority to the file of those that a root file system trusts,
// if it has one. restore takes it out again, whatever a step has made of the
// file meanwhile, and leaves no trace where that is nothing.
func trust(dir string, ca []byte) (restore func() error, err error) {
	root, err := safepath.Open(dir)
	if err != nil {
		return nil, err
	}
	keep := false
	defer func() {
		if !keep {
			root.Close()
		}
	}()
	name, before, err := findBundle(root)
	if err != nil {
		return nil, err
	}
	if name == "" {
		return func() error { return nil }, nil
	}
	text, err := root.ReadFile(name, maxBundle)
	if err != nil {
		return nil, err
	}
	added := []byte(beginMark + string(ca) + endMark)
	if err := writeBundle(root, name, append(bytes.Clone(text), added...)); err != nil {
		return nil, err
	}
	keep = true
	return func() error {
		defer root.Close()
		if err := distrust(root, name, added, text, before.ModTime()); err != nil {
			return fmt.Errorf("failed to clean up proxy CA: %w", err)
		}
		return nil
	}, nil
}

func findBundle(root *safepath.Root) (string, fs.FileInfo, error) {
	for _, name := range bundles() {
		info, err := root.Stat(name)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		name, err := root.Resolve(name)
		return name, info, err
	}
	return "", nil, nil
}

func writeBundle(root *safepath.Root, name string, text []byte) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// distrust takes what was added out of a file; a step may have removed the file,
// or copied it elsewhere and written it anew.
func distrust(root *safepath.Root, name string, added, was []byte, modified time.Time) error {
	text, err := root.ReadFile(name, maxBundle)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	left := bytes.ReplaceAll(text, added, nil)
	if len(left) == len(text) {
		return nil
	}
	if err := writeBundle(root, name, left); err != nil {
		return err
	}
	if bytes.Equal(left, was) {
		return root.Utimes(name, modified, modified)
	}
	return nil
}

// distrust takes the proxy's certificate from a container's files. c.mu is held.
func (c *Container) distrust() error {
	if c.restore == nil {
		return nil
	}
	restore := c.restore
	c.restore = nil
	return restore()
}
