package gha

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Pages of a list of keys, and how many of them are read at most.
const perPage, mostPages = 100, 200

// list learns the keys of all blobs at once, if there is a token for GitHub's API.
// Without, or if it fails, the service is asked for each.
func (s *service) list(ctx context.Context) {
	if s.c.repository == "" || s.c.ghtoken == "" {
		return
	}
	keys := map[string]bool{}
	for _, sc := range s.c.scopes {
		if s.listScope(ctx, sc.Scope, keys) != nil {
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = keys
}

func (s *service) listScope(ctx context.Context, ref string, keys map[string]bool) error {
	for page := 1; page <= mostPages; page++ {
		q := url.Values{"key": {blobPrefix}, "ref": {ref}, "per_page": {strconv.Itoa(perPage)}, "page": {strconv.Itoa(page)}}
		a, err := s.do(ctx, request{
			method: http.MethodGet, url: strings.TrimRight(s.conf.API, "/") + "/repos/" + s.c.repository + "/actions/caches?" + q.Encode(),
			header: http.Header{"Accept": {"application/vnd.github+json"}, "Authorization": {"Bearer " + s.c.ghtoken}, "X-Github-Api-Version": {"2022-11-28"}},
		})
		if err == nil && a.status != http.StatusOK {
			err = fmt.Errorf("status %d", a.status)
		}
		var out struct {
			Total  int `json:"total_count"`
			Caches []struct {
				Key string `json:"key"`
			} `json:"actions_caches"`
		}
		if err == nil {
			err = json.Unmarshal(a.body, &out)
		}
		if err != nil {
			return err
		}
		for _, c := range out.Caches {
			keys[c.Key] = true
		}
		if page*perPage >= out.Total {
			return nil
		}
	}
	return fmt.Errorf("there are more than %d keys", perPage*mostPages)
}
