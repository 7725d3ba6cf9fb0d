package cache

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

// Refusal is why a store of objects did not do what it was asked for. Its text has
// no address that could hold a secret.
type Refusal struct {
	Verb, Key string // what was asked for
	Where     string // the store, such as "the bucket x"
	Login     string // what to check if it wants other credentials
	Status    int    // of HTTP, 0 if there was no answer
	Code      string // the store's own word, if it has one
	Err       error
}

// Refused makes err a [Refusal] like r. One that is a Refusal already, nil, and the
// end of a context stay as they are.
func Refused(r Refusal, err error) error {
	if known := (*Refusal)(nil); err == nil || errors.Is(err, context.Canceled) || errors.As(err, &known) {
		return err
	}
	r.Err = err
	return &r
}

// Error is one line.
func (r *Refusal) Error() string {
	what := fmt.Sprintf("%s %s in %s: ", r.Verb, r.Key, r.Where)
	code := r.Code
	if code == "" {
		code = http.StatusText(r.Status)
	}
	switch {
	case r.Status == 0:
		return what + withoutURL(r.Err).Error() + ": check the address and the network"
	case r.Status == http.StatusUnauthorized || r.Status == http.StatusForbidden:
		return fmt.Sprintf("%saccess was refused (%d %s): check %s", what, r.Status, code, r.Login)
	case r.Status == http.StatusNotFound:
		return fmt.Sprintf("%sthere is no such thing (%d %s): check the names and the address", what, r.Status, code)
	case r.Status == http.StatusTooManyRequests:
		return fmt.Sprintf("%srequests are limited (%d %s): wait a while", what, r.Status, code)
	case r.Status >= http.StatusInternalServerError:
		return fmt.Sprintf("%sthe server failed (%d %s): try again later", what, r.Status, code)
	}
	return fmt.Sprintf("%sthe server answered %d %s", what, r.Status, code)
}

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }

// withoutURL takes the address off what net/http says.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
