package auth

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	helpers "github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
)

const (
	// helperTimeout is how long a credential helper may take: it may ask a person,
	// but its lack must be told before the daemon gives up on this client.
	helperTimeout = timeout - 10*time.Second
	// helperPrefix begins the names of the helpers' programs.
	helperPrefix = "docker-credential-"
	// identityUser is what helpers call the user of an identity token.
	identityUser = "<token>"
)

// Lookup returns what is known of a registry, by its key in the configuration.
type Lookup func(ctx context.Context, key string) (types.AuthConfig, error)

// DockerConfig is a Docker configuration, and the credential helpers that it names.
type DockerConfig struct {
	Dir     string        // "" is the usual one ($DOCKER_CONFIG or ~/.docker)
	Timeout time.Duration // of a helper; 0 is the usual one

	mu      sync.Mutex
	helpers map[string]*helper // by program
}

// helper is a program that knows credentials.
type helper struct {
	turn   chan struct{} // holds who asks it: it is not for concurrent use
	silent error         // that it gave no answer; guarded by turn
}

func (d *DockerConfig) helper(program string) *helper {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.helpers == nil {
		d.helpers = map[string]*helper{}
	}
	h := d.helpers[program]
	if h == nil {
		h = &helper{turn: make(chan struct{}, 1)}
		d.helpers[program] = h
	}
	return h
}

// Lookup looks for a registry. The file is read each time.
func (d *DockerConfig) Lookup(ctx context.Context, key string) (types.AuthConfig, error) {
	file, err := config.Load(d.Dir)
	if err != nil {
		return types.AuthConfig{}, fmt.Errorf("read the Docker configuration: %w", err)
	}
	name, ok := file.CredentialHelpers[key]
	if !ok {
		name = file.CredentialsStore
	}
	// The library would wait for the helper for ever.
	file.CredentialHelpers, file.CredentialsStore = nil, ""
	entry, err := file.GetAuthConfig(key)
	if name == "" || err != nil {
		return entry, err
	}
	file.AuthConfigs = nil
	if given, err := file.GetAuthConfig(key); err != nil || given != (types.AuthConfig{}) {
		return given, err // by the environment, which goes before helpers
	}
	got, err := d.ask(ctx, helperPrefix+name, key)
	if err != nil || got == nil {
		return types.AuthConfig{}, err
	}
	if got.Username == identityUser {
		entry.Username, entry.Password, entry.IdentityToken = "", "", got.Secret
	} else {
		entry.Username, entry.Password, entry.IdentityToken = got.Username, got.Secret, ""
	}
	return entry, nil
}

// ask runs a helper; nil is that it has nothing. One that gave no answer is not
// asked again.
func (d *DockerConfig) ask(ctx context.Context, program, key string) (*credentials.Credentials, error) {
	h := d.helper(program)
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if h.silent != nil {
		return nil, h.silent
	}
	limit := d.Timeout
	if limit == 0 {
		limit = helperTimeout
	}
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	got, err := helpers.Get(func(args ...string) helpers.Program {
		cmd := exec.CommandContext(within, program, args...)
		cmd.Stderr, cmd.WaitDelay = os.Stderr, time.Second
		return &helperProcess{cmd}
	}, key)
	switch {
	case credentials.IsErrCredentialsNotFound(err):
		return nil, nil
	case within.Err() != nil && ctx.Err() == nil:
		h.silent = fmt.Errorf("the credential helper %s gave no answer within %v: run \"echo %s | %s get\" to see what it waits for, "+
			"or take it out of the Docker configuration", program, limit, key, program)
		return nil, h.silent
	}
	return got, err
}

// helperProcess is a helper's process as its library sees it.
type helperProcess struct{ *exec.Cmd }

func (p *helperProcess) Input(in io.Reader) { p.Stdin = in }
