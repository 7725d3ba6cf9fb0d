// Package local brings in a directory of a client, over its session.
//
// What a client sent last is kept under its shared key: the files as an
// immutable layer, and a list of them. The next time, the client's listing is
// held against that list, only what changed is asked for, and it goes into a
// layer on top of the last one. Nothing that is kept is ever read for this, and
// nothing is written if nothing changed. Since layers do not change, builds
// that share a key do not disturb each other: each works from what was
// complete when it began, and whichever ends last is remembered.
package local

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/contenthash"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/session/files"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

// Layers is what of [layer.Store] is needed here.
type Layers interface {
	Get(ctx context.Context, id string) (*layer.Ref, error)
	New(ctx context.Context, parent *layer.Ref, opt layer.NewOptions) (*layer.Mutable, error)
	Mount(ctx context.Context, r *layer.Ref) (dir string, release func() error, err error)
}

// Sessions finds a client by its session's id, waiting for it if need be;
// [session.Manager] does.
type Sessions interface {
	Get(ctx context.Context, id string) (*session.Caller, error)
}

// Trees keeps content digests beside layers.
type Trees interface {
	SetTree(r *layer.Ref, t *contenthash.Tree)
}

// Config is what a Source is made of.
type Config struct {
	Layers   Layers
	Memo     source.Memo
	Sessions Sessions
	// Trees is given the digests of what was received, so that nobody has to
	// read it again; nil is Layers, if it takes them.
	Trees Trees
	// MaxDepth is how many layers may lie on top of each other before they are
	// made one; 0 is 20.
	MaxDepth int
}

// Source is a source.Source for directories of clients.
type Source struct {
	cfg Config

	mu   sync.Mutex
	last map[string]*state // by shared key

	writers sync.Pool // of *flate.Writer, which are large
	handed  handed
}

// New returns a source.
func New(c Config) *Source {
	if c.MaxDepth == 0 {
		c.MaxDepth = 20
	}
	if c.Trees == nil {
		c.Trees, _ = c.Layers.(Trees)
	}
	return &Source{cfg: c, last: map[string]*state{}}
}

// Schemes is "local".
func (s *Source) Schemes() []string { return []string{"local"} }

// request is a SourceOp, decoded.
type request struct {
	name          string
	sessionID     string
	sharedKeyHint string
	unique        string
	fresh         bool // compare with nothing: everything is sent
	metadataOnly  bool // send a list of files, and the content of some
	exceptions    []string
	files.ReceiveOptions
}

func decode(op *llb.SourceOp) (*request, error) {
	name, ok := strings.CutPrefix(op.Identifier, "local://")
	if !ok || name == "" {
		return nil, fmt.Errorf("malformed identifier %q: expected local://name", op.Identifier)
	}
	r := &request{name: name, sharedKeyHint: name}
	r.Name = name
	for k, v := range op.Attrs {
		if err := r.attr(k, v); err != nil {
			return nil, fmt.Errorf("source %s: %w", op.Identifier, err)
		}
	}
	return r, nil
}

func (r *request) attr(key, value string) error {
	list := func(to *[]string) error {
		if err := json.Unmarshal([]byte(value), to); err != nil {
			return fmt.Errorf("attribute %s=%q: expected a JSON list of strings: %w", key, value, err)
		}
		return nil
	}
	switch key {
	case "local.session":
		r.sessionID = value
		// "name:id" pairs, of which ours counts
		if name, id, ok := strings.Cut(value, ":"); ok && name == r.name {
			r.sessionID = id
		}
	case "local.unique": // makes two equal vertices different
		r.unique = value
	case "local.includepattern":
		return list(&r.Include)
	case "local.excludepatterns":
		return list(&r.Exclude)
	case "local.followpaths":
		return list(&r.FollowPaths)
	case "local.sharedkeyhint":
		r.sharedKeyHint = value
	case "local.differ":
		switch value {
		case "", "metadata":
		case "none":
			r.fresh = true
		default:
			return fmt.Errorf("attribute %s=%q: expected none or metadata", key, value)
		}
	case "local.metadatatransfer":
		var err error
		if r.metadataOnly, err = strconv.ParseBool(value); err != nil {
			return fmt.Errorf("attribute %s=%q: expected true or false", key, value)
		}
	case "local.metadatatransferexclude":
		return list(&r.exceptions)
	default:
		return source.UnknownAttr(key)
	}
	return nil
}

// private is what a pin remembers.
type private struct {
	req    *request
	caller *session.Caller
	layer  string // what another client has sent; "" to ask this one
}

// Resolve finds the client. What its files are is found out by content: the
// key holds for one session only.
func (s *Source) Resolve(ctx context.Context, op *llb.SourceOp, opt source.Options) (*source.Pin, error) {
	r, err := decode(op)
	if err != nil {
		return nil, err
	}
	caller, err := s.caller(ctx, r)
	if err != nil {
		return nil, err
	}
	// Fields and order are the protocol's.
	b, err := json.Marshal(struct {
		SessionID          string
		IncludePatterns    []string
		ExcludePatterns    []string
		FollowPaths        []string
		MetadataTransfer   bool     `json:",omitempty"`
		MetadataExceptions []string `json:",omitempty"`
	}{caller.ID(), r.Include, r.Exclude, r.FollowPaths, r.metadataOnly, r.exceptions})
	if err != nil {
		return nil, fmt.Errorf("encode cache key: %w", err)
	}
	return &source.Pin{
		Op: op, Platform: opt.Platform, Name: r.name,
		Key:     "session:" + r.name + ":" + digest.FromBytes(b).String(),
		Private: &private{req: r, caller: caller, layer: s.takeOver(r, caller)},
	}, nil
}

// caller is the client that op names, or else the nearest one with files.
func (s *Source) caller(ctx context.Context, r *request) (*session.Caller, error) {
	nearest := session.FromContext(ctx)
	for _, c := range nearest {
		if r.sessionID == c.ID() || r.sessionID == "" && c.Supports(files.MethodDiffCopy) {
			return c, nil
		}
	}
	if r.sessionID == "" {
		return nil, fmt.Errorf("read local directory %q: no client of this build shares directories: %w", r.name, session.ErrNoSession)
	}
	// The build may have been told of a session before it is there.
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := s.cfg.Sessions.Get(ctx, r.sessionID)
	if err != nil {
		return nil, fmt.Errorf("read local directory %q: find session %q: %w", r.name, r.sessionID, err)
	}
	return c, nil
}

// Fetch brings the client's directory over, as far as it changed.
func (s *Source) Fetch(ctx context.Context, pin *source.Pin) (*layer.Ref, error) {
	p, ok := pin.Private.(*private)
	if !ok {
		return nil, fmt.Errorf("fetch %s: the pin is not of this source", pin.Op.Identifier)
	}
	if p.layer != "" {
		return s.cfg.Layers.Get(ctx, p.layer)
	}
	key := sharedKey(p.req, p.caller)
	old := &state{}
	if !p.req.fresh {
		old = s.recall(ctx, key)
	}
	task := progress.StepFrom(ctx).Task("transferring "+p.req.name+":", 0)
	defer task.Done()
	in := newIntake(ctx, s.cfg, p.req.name, old, task)
	if p.req.fresh {
		in.twin = s.recall(ctx, key)
	}
	defer in.discard()
	finish, err := in.receive(p)
	if err != nil {
		return nil, err
	}
	now, err := finish()
	if err != nil {
		return nil, fmt.Errorf("keep local directory %q: %w", p.req.name, err)
	}
	if now.ref != nil && s.cfg.Trees != nil {
		s.cfg.Trees.SetTree(now.ref, now.tree)
	}
	if now != old && now != in.twin {
		if err := s.remember(key, now); err != nil {
			return nil, fmt.Errorf("keep local directory %q: %w", p.req.name, err)
		}
	}
	if now.ref != nil {
		s.handOver(p.req, p.caller, now.ref.ID())
	}
	return now.ref, nil
}

// receive takes what the client sends, and returns what makes a state of it.
func (in *intake) receive(p *private) (finish func() (*state, error), err error) {
	if !p.req.metadataOnly {
		return in.finish, files.Receive(in.ctx, p.caller, p.req.ReceiveOptions, listing{in, in.task})
	}
	m, err := newMetadataOnly(in, p.req.exceptions)
	if err != nil {
		return nil, err
	}
	return m.finish, files.Receive(in.ctx, p.caller, p.req.ReceiveOptions, listing{m, in.task})
}

// listing counts the client's listing as transferred, for a client that sees
// nothing of it would take a long listing for one that does not answer.
type listing struct {
	files.Destination
	task *progress.Task
}

// Stat counts the entry.
func (l listing) Stat(st *files.Stat) (bool, error) {
	l.task.Add(int64(proto.Size(st)))
	return l.Destination.Stat(st)
}

// sharedKey is the name under which a client's files are kept. Clients that give
// no key of their own, as buildctl, share what they send under one name; what
// of it is not theirs differs in size or time, and is sent anew.
func sharedKey(r *request, c *session.Caller) string {
	key := r.name + ":" + r.sharedKeyHint + ":" + c.SharedKey()
	if r.metadataOnly {
		key += ":metadata"
	}
	return key
}

// recall returns what was kept under a shared key; an empty state if it is gone.
func (s *Source) recall(ctx context.Context, key string) *state {
	s.mu.Lock()
	st := s.last[key]
	s.mu.Unlock()
	if st == nil {
		b, ok := s.cfg.Memo.Value(memoNamespace, memoKey(key))
		if !ok {
			return &state{}
		}
		var err error
		if st, err = decodeState(b); err == nil {
			err = st.plant(nil, nil)
		}
		if err != nil {
			return &state{} // of another version: begin anew
		}
	}
	if st.id == "" {
		return &state{}
	}
	ref, err := s.cfg.Layers.Get(ctx, st.id)
	if err != nil {
		return &state{} // pruned
	}
	kept := *st // states are shared
	kept.ref = ref
	return &kept
}

func (s *Source) remember(key string, st *state) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	const many = 1000 // keys in memory; what is forgotten is in the memo
	if len(s.last) >= many {
		clear(s.last)
	}
	s.last[key] = st
	b, err := st.encode(&s.writers)
	if err != nil {
		return err
	}
	return s.cfg.Memo.PutValue(memoNamespace, memoKey(key), b)
}

// memoNamespace is where states are remembered.
const memoNamespace = "source.local"

func memoKey(key string) string { return digest.FromString(key).Encoded() }
