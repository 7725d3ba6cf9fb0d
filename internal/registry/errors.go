package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// Error is why a registry did not do what it was asked for, in words for the
// person who wrote the image's name.
type Error struct {
	Op     string // "pull" or "push"
	Ref    string // the image
	Reason string // what went wrong and what to do, the registry's name in it
	Err    error
}

// Error is one line.
func (e *Error) Error() string { return fmt.Sprintf("%s %s: %s", e.Op, e.Ref, e.Reason) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// explain turns what containerd's client says into an Error. Programs tell its
// kinds apart by that client's words, so they are among ours.
func explain(op, ref string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if known := (*Error)(nil); errors.As(err, &known) {
		return err
	}
	registry := "registry"
	login := ""
	if named, perr := reference.ParseNormalizedNamed(ref); perr == nil {
		login = reference.Domain(named)
		registry = "registry " + login
	}
	return &Error{Op: op, Ref: ref, Reason: reason(op, registry, login, err), Err: err}
}

func reason(op, registry, login string, err error) string {
	var failed *failure
	var status remoteerrors.ErrUnexpectedStatus
	var reader *sourceError
	code, said := 0, ""
	if errors.As(err, &status) {
		code, said = status.StatusCode, message(status.Body)
	}
	denied := fmt.Sprintf("check the name, and log in with \"docker login %s\" if the image is private", login)
	if op == "push" {
		denied = fmt.Sprintf("log in with \"docker login %s\" as a user who may push there", login)
	}
	switch {
	case errors.As(err, &reader):
		return fmt.Sprintf("read what is to be pushed: %v", reader.err)
	case errors.As(err, &failed):
		return failed.Error() + ": " + failed.advice()
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return fmt.Sprintf("%s refused access (unexpected status 401 Unauthorized): %s: %v", registry, denied, err)
	case code == http.StatusUnauthorized:
		return fmt.Sprintf("%s refused access (unexpected status 401 Unauthorized)%s: %s", registry, said, denied)
	case code == http.StatusForbidden:
		return fmt.Sprintf("%s forbids this (unexpected status 403 Forbidden)%s: %s", registry, said, denied)
	case code == http.StatusNotFound || errdefs.IsNotFound(err):
		return fmt.Sprintf("not found: %s has no such image (404)%s: check the name, the tag and the spelling", registry, said)
	case code != 0:
		return fmt.Sprintf("%s answered with unexpected status %s%s", registry, status.Status, said)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Sprintf("%s broke the connection off again and again: check the network and try again", registry)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("%s took too long: check the network and try again", registry)
	}
	return fmt.Sprintf("%s: %v", registry, err)
}

// advice says what to do about a failure.
func (f *failure) advice() string {
	switch {
	case f.status == http.StatusTooManyRequests:
		return "wait a while, or log in to be allowed more"
	case f.status != 0:
		return "the fault is on its side, try again later"
	}
	return "check the host's name and the network"
}

// message extracts the registry's own words, in the distribution API's form.
func message(body []byte) string {
	var answer struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Errors) == 0 {
		return ""
	}
	const most = 300
	said := printable([]byte(answer.Errors[0].Code + ": " + answer.Errors[0].Message))
	return " (" + said[:min(len(said), most)] + ")"
}

// sourceError is a failure to read what is to be pushed.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// IsUnreachable tells whether err says that a registry could not be asked, as
// opposed to having answered with a refusal.
func IsUnreachable(err error) bool {
	var f *failure
	return errors.As(err, &f) && (f.status == 0 || f.status >= 500) && !errors.Is(f.cause, context.Canceled)
}
