package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/exporter"
	"github.com/moby/buildkit/session/exporter/exporterprovider"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"

	"github.com/kiln-build/kiln/conformance/peer"
)

// images is a registry with the base image, twice.
type images struct{ one, two string } // references with tags

func newImages(t *testing.T) images {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	index, err := layout.ImageIndexFromPath(shared.base.Dir)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := v1.NewHash(shared.base.Digest)
	if err != nil {
		t.Fatal(err)
	}
	image, err := index.Image(hash)
	if err != nil {
		t.Fatal(err)
	}
	i := images{s.Listener.Addr().String() + "/one:latest", s.Listener.Addr().String() + "/two:latest"}
	for _, to := range []string{i.one, i.two} {
		ref, err := name.ParseReference(to)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, image); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

// onBoth runs a test against a daemon of each kind.
func onBoth(t *testing.T, f func(t *testing.T, ctx context.Context, c *client.Client)) {
	for _, d := range []*peer.Daemon{shared.buildkit, shared.kiln} {
		t.Run(d.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			c := dial(ctx, t, d)
			defer c.Close()
			f(t, ctx, c)
		})
	}
}

func policyRule(a spb.PolicyAction, id, to string) *spb.Rule {
	r := &spb.Rule{Action: a, Selector: &spb.Selector{Identifier: id}}
	if to != "" {
		r.Updates = &spb.Update{Identifier: to}
	}
	return r
}

// TestSourcePolicy gives rules with a build, and with a frontend's request.
func TestSourcePolicy(t *testing.T) {
	i := newImages(t)
	const deny, convert, allow = spb.PolicyAction_DENY, spb.PolicyAction_CONVERT, spb.PolicyAction_ALLOW
	one, two := "docker-image://"+i.one, "docker-image://"+i.two
	for what, test := range map[string]struct {
		rules []*spb.Rule
		fails string
	}{
		"deny":              {[]*spb.Rule{policyRule(deny, one, "")}, fmt.Sprintf("source %q denied by policy: source denied by policy", one)},
		"deny by wildcard":  {[]*spb.Rule{policyRule(deny, "docker-image://*", "")}, "denied by policy"},
		"deny, then allow":  {[]*spb.Rule{policyRule(deny, "*", ""), policyRule(allow, one, "")}, ""},
		"convert":           {[]*spb.Rule{policyRule(convert, one, two), policyRule(deny, one, "")}, ""},
		"convert, then not": {[]*spb.Rule{policyRule(convert, one, two), policyRule(deny, two, "")}, fmt.Sprintf("source %q denied", two)},
		"convert to nobody": {[]*spb.Rule{policyRule(convert, one, one+"@sha256:"+strings.Repeat("a", 64))}, strings.Repeat("a", 64)},
		"in circles":        {[]*spb.Rule{policyRule(convert, one, two), policyRule(convert, two, one)}, "too many operations"},
	} {
		t.Run(what, func(t *testing.T) {
			onBoth(t, func(t *testing.T, ctx context.Context, c *client.Client) {
				policy := &spb.Policy{Rules: test.rules}
				for by, run := range map[string]func() error{
					"build": func() error {
						return solveImage(ctx, c, i.one, client.SolveOpt{SourcePolicy: policy}, nil)
					},
					"request": func() error { return solveImage(ctx, c, i.one, client.SolveOpt{}, policy) },
				} {
					err := run()
					if (err == nil) != (test.fails == "") || err != nil && !strings.Contains(err.Error(), test.fails) {
						t.Errorf("policy of a %s: got %v, expected %q", by, err, test.fails)
					}
				}
			})
		})
	}
}

// solveImage builds an image, as it is.
func solveImage(ctx context.Context, c *client.Client, ref string, opt client.SolveOpt, policy *spb.Policy) error {
	_, err := c.Build(ctx, opt, "", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		def, err := llb.Image(ref).Marshal(ctx)
		if err != nil {
			return nil, err
		}
		r := gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true}
		if policy != nil {
			r.SourcePolicies = []*spb.Policy{policy}
		}
		return g.Solve(ctx, r)
	}, nil)
	return err
}

// asked is what a client's policy says to one question.
type asked func(req *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gwpb.ResolveSourceMetaRequest, error)

func decide(a spb.PolicyAction, because ...string) asked {
	return func(*policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gwpb.ResolveSourceMetaRequest, error) {
		d := &policysession.DecisionResponse{Action: a}
		for _, m := range because {
			d.DenyMessages = append(d.DenyMessages, &policysession.DenyMessage{Message: m})
		}
		return d, nil, nil
	}
}

// TestSourcePolicySession has the client decide over its session.
func TestSourcePolicySession(t *testing.T) {
	i := newImages(t)
	two := "docker-image://" + i.two
	wantMeta := func(req *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gwpb.ResolveSourceMetaRequest, error) {
		if req.Source.Image != nil {
			return nil, nil, errors.New("metadata came without being asked for")
		}
		return nil, &gwpb.ResolveSourceMetaRequest{Source: req.Source.Source, Platform: req.Platform}, nil
	}
	hasMeta := func(req *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gwpb.ResolveSourceMetaRequest, error) {
		if req.Source.Image.GetDigest() != shared.base.Digest || len(req.Source.Image.GetConfig()) == 0 {
			return nil, nil, fmt.Errorf("digest %q, config %q", req.Source.Image.GetDigest(), req.Source.Image.GetConfig())
		}
		return decide(spb.PolicyAction_ALLOW)(req)
	}
	convert := func(req *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gwpb.ResolveSourceMetaRequest, error) {
		return &policysession.DecisionResponse{Action: spb.PolicyAction_CONVERT, Update: &pb.SourceOp{
			Identifier: two, Attrs: map[string]string{"mark": "x"},
		}}, nil, nil
	}
	converted := func(req *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gwpb.ResolveSourceMetaRequest, error) {
		if req.Source.Source.Identifier != two || req.Source.Source.Attrs["mark"] != "x" {
			return nil, nil, fmt.Errorf("asked about %v", req.Source.Source)
		}
		return decide(spb.PolicyAction_ALLOW)(req)
	}
	otherSource := func(req *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gwpb.ResolveSourceMetaRequest, error) {
		return nil, &gwpb.ResolveSourceMetaRequest{Source: &pb.SourceOp{Identifier: two}}, nil
	}
	for what, test := range map[string]struct {
		answers []asked
		fails   string
		details []string
	}{
		"allow":    {[]asked{decide(spb.PolicyAction_ALLOW)}, "", nil},
		"deny":     {[]asked{decide(spb.PolicyAction_DENY, "not today", "ask tomorrow")}, "not allowed by policy: action DENY", []string{"not today", "ask tomorrow"}},
		"metadata": {[]asked{wantMeta, hasMeta}, "", nil},
		"convert":  {[]asked{convert, converted}, "", nil},
		"no decision": {[]asked{func(*policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gwpb.ResolveSourceMetaRequest, error) {
			return nil, nil, nil
		}}, "no decision in policy response", nil},
		"another source": {[]asked{otherSource}, "policy requested different source identifier", nil},
	} {
		t.Run(what, func(t *testing.T) {
			onBoth(t, func(t *testing.T, ctx context.Context, c *client.Client) {
				var mu sync.Mutex
				n := 0
				p := policysession.NewPolicyProvider(func(_ context.Context, req *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gwpb.ResolveSourceMetaRequest, error) {
					mu.Lock()
					defer mu.Unlock()
					if n++; n > len(test.answers) {
						return nil, nil, fmt.Errorf("asked %d times", n)
					}
					return test.answers[n-1](req)
				})
				def, err := llb.Image(i.one).Marshal(ctx)
				if err != nil {
					t.Fatal(err)
				}
				_, err = c.Solve(ctx, def, client.SolveOpt{SourcePolicyProvider: p}, nil)
				if (err == nil) != (test.fails == "") || err != nil && !strings.Contains(err.Error(), test.fails) {
					t.Errorf("got %v, expected %q", err, test.fails)
				}
				if n != len(test.answers) {
					t.Errorf("asked %d times, expected %d", n, len(test.answers))
				}
				var details []string
				for _, m := range policysession.DenyMessages(err) {
					details = append(details, m.GetMessage())
				}
				if fmt.Sprint(details) != fmt.Sprint(test.details) {
					t.Errorf("the error's details are %q, expected %q", details, test.details)
				}
			})
		})
	}
}

// TestSourcePolicyAtOnce asks about two sources, each of which waits for the other.
func TestSourcePolicyAtOnce(t *testing.T) {
	i := newImages(t)
	onBoth(t, func(t *testing.T, ctx context.Context, c *client.Client) {
		met := make(chan struct{}, 2)
		p := policysession.NewPolicyProvider(func(ctx context.Context, req *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gwpb.ResolveSourceMetaRequest, error) {
			met <- struct{}{}
			for len(met) < 2 {
				select {
				case <-ctx.Done():
					return nil, nil, ctx.Err()
				case <-time.After(10 * time.Millisecond):
				}
			}
			return &policysession.DecisionResponse{Action: spb.PolicyAction_ALLOW}, nil, nil
		})
		def, err := llb.Image(i.one).File(llb.Copy(llb.Image(i.two), "/bin/busybox", "/copied")).Marshal(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Solve(ctx, def, client.SolveOpt{SourcePolicyProvider: p}, nil); err != nil {
			t.Error(err)
		}
	})
}

// TestImageBlob makes a file of one blob of an image.
func TestImageBlob(t *testing.T) {
	i := newImages(t)
	ref, err := name.ParseReference(i.one)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	blob := m.Config.Digest
	onBoth(t, func(t *testing.T, ctx context.Context, c *client.Client) {
		_, err := c.Build(ctx, client.SolveOpt{}, "", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
			st := llb.ImageBlob(strings.TrimSuffix(i.one, ":latest")+"@"+blob.String(), llb.Filename("config.json"), llb.Chmod(0o640), llb.Chown(12, 34))
			def, err := st.Marshal(ctx)
			if err != nil {
				return nil, err
			}
			r, err := g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
			if err != nil {
				return nil, err
			}
			root, err := r.SingleRef()
			if err != nil {
				return nil, err
			}
			b, err := root.ReadFile(ctx, gateway.ReadRequest{Filename: "config.json"})
			if err != nil {
				return nil, err
			}
			if !json.Valid(b) || int64(len(b)) != m.Config.Size {
				t.Errorf("the file is %q", b)
			}
			st2, err := root.StatFile(ctx, gateway.StatRequest{Path: "config.json"})
			if err != nil {
				return nil, err
			}
			if st2.Mode != 0o640 || st2.Uid != 12 || st2.Gid != 34 || st2.ModTime != 0 {
				t.Errorf("mode %o, owner %d:%d, time %d", st2.Mode, st2.Uid, st2.Gid, st2.ModTime)
			}
			return r, nil
		}, nil)
		if err != nil {
			t.Error(err)
		}
	})
}

// TestAttestationChain asks what vouches for an image, of one that has
// statements and of one that has none.
func TestAttestationChain(t *testing.T) {
	i := newImages(t)
	attested := attest(t, i.one)
	onBoth(t, func(t *testing.T, ctx context.Context, c *client.Client) {
		_, err := c.Build(ctx, client.SolveOpt{}, "", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
			cases := map[string]bool{attested.ref: true, i.two: false}
			if strings.HasSuffix(t.Name(), "/buildkit") {
				delete(cases, i.two) // buildkitd dies of an image without an index
			}
			for ref, has := range cases {
				m, err := g.ResolveSourceMetadata(ctx, &pb.SourceOp{Identifier: "docker-image://" + ref}, sourceresolver.Opt{
					ImageOpt: &sourceresolver.ResolveImageOpt{NoConfig: true, AttestationChain: true, ResolveAttestations: []string{"https://slsa.dev/provenance/v1"}},
				})
				if err != nil {
					return nil, err
				}
				ac := m.Image.AttestationChain
				if ac == nil && !has {
					continue
				}
				if ac == nil || (ac.AttestationManifest != "") != has {
					t.Errorf("%s: chain %+v", ref, ac)
					continue
				}
				if len(m.Image.Config) > 0 || string(ac.Root) != attested.root || string(ac.ImageManifest) != shared.base.Digest {
					t.Errorf("%s: config of %d bytes, chain %+v", ref, len(m.Image.Config), ac)
				}
				if string(ac.AttestationManifest) != attested.manifest || len(ac.Blobs) != 3 {
					t.Errorf("%s: attestations %s, %d blobs", ref, ac.AttestationManifest, len(ac.Blobs))
				}
				for d, b := range ac.Blobs {
					if b.Descriptor.Digest != d || d.Algorithm().FromBytes(b.Data) != d {
						t.Errorf("blob %s: descriptor %s, bytes of %s", d, b.Descriptor.Digest, d.Algorithm().FromBytes(b.Data))
					}
				}
			}
			return gateway.NewResult(), nil
		}, nil)
		if err != nil {
			t.Error(err)
		}
	})
}

// attestedImage is an index of an image and a statement about it.
type attestedImage struct{ ref, root, manifest string }

func attest(t *testing.T, of string) attestedImage {
	t.Helper()
	src, err := name.ParseReference(of)
	if err != nil {
		t.Fatal(err)
	}
	image, err := remote.Image(src)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	statement := static{[]byte(`{"_type":"https://in-toto.io/Statement/v1"}`)}
	about, err := mutate.Append(mutate.MediaType(empty.Image, "application/vnd.oci.image.manifest.v1+json"), mutate.Addendum{
		Layer: statement, MediaType: "application/vnd.in-toto+json",
		Annotations: map[string]string{"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, "application/vnd.oci.image.index.v1+json"),
		mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: about, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"},
			Annotations: map[string]string{
				"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": digest.String(),
			},
		}})
	to := src.Context().Tag("attested")
	if err := remote.WriteIndex(to, index); err != nil {
		t.Fatal(err)
	}
	root, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := about.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return attestedImage{to.String(), root.String(), manifest.String()}
}

// static is a layer of given bytes, as they are.
type static struct{ b []byte }

func (s static) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(strings.NewReader(string(s.b)))
	return h, err
}
func (s static) DiffID() (v1.Hash, error) { return s.Digest() }
func (s static) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(string(s.b))), nil
}
func (s static) Uncompressed() (io.ReadCloser, error) { return s.Compressed() }
func (s static) Size() (int64, error)                 { return int64(len(s.b)), nil }
func (s static) MediaType() (types.MediaType, error)  { return "application/vnd.in-toto+json", nil }

// TestSessionExporter adds an exporter when the result is known, after having
// looked into it, and is told what came of all.
func TestSessionExporter(t *testing.T) {
	onBoth(t, func(t *testing.T, ctx context.Context, c *client.Client) {
		const ref = "session-exporter-"
		id := ref + strings.ReplaceAll(t.Name(), "/", "-")
		target := filesync.NewFSSyncTarget()
		var out strings.Builder
		told := false
		p := exporterprovider.New(func(ctx context.Context, _ map[string][]byte, refs []string) ([]*exporter.ExporterRequest, error) {
			if len(refs) != 1 {
				return nil, fmt.Errorf("told of %d results", len(refs))
			}
			d, err := c.GatewayClientForBuild(id).ReadDir(ctx, &gwpb.ReadDirRequest{Ref: refs[0], DirPath: "/"})
			if err != nil {
				return nil, err
			}
			if len(d.Entries) != 1 || d.Entries[0].Path != "foo" {
				return nil, fmt.Errorf("the result is said to have %v", d.Entries)
			}
			target.Add(filesync.WithFSSync(0, func(map[string]string) (io.WriteCloser, error) { return closer{&out}, nil }))
			return []*exporter.ExporterRequest{{Type: "tar"}}, nil
		}, exporterprovider.WithFinalizeCallback(func(context.Context, map[string]string) error {
			told = true
			return nil
		}))
		_, err := c.Build(ctx, client.SolveOpt{
			EnableSessionExporter: true, Ref: id, Session: []session.Attachable{target, p},
		}, "", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
			def, err := llb.Scratch().File(llb.Mkfile("/foo", 0o600, []byte("data"))).Marshal(ctx)
			if err != nil {
				return nil, err
			}
			return g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !told || !strings.Contains(out.String(), "foo") {
			t.Errorf("told: %t, exported %d bytes", told, out.Len())
		}
	})
}

type closer struct{ io.Writer }

func (closer) Close() error { return nil }
