package build

import "testing"

// TestAnswerOfCaches: the client has one manifest for its folders' indexes, whichever
// export ends first.
func TestAnswerOfCaches(t *testing.T) {
	for _, test := range []struct {
		name             string
		types, manifests []string
		want             string
	}{
		{"none", []string{"registry"}, []string{""}, ""},
		{"registries", []string{"registry", "registry"}, []string{"a", "b"}, "b"},
		{"folder first", []string{"local", "registry"}, []string{"a", "b"}, "a"},
		{"folder last", []string{"registry", "local"}, []string{"a", "b"}, "b"},
		{"folder without a manifest", []string{"registry", "local"}, []string{"a", ""}, "a"},
	} {
		var exports []cacheExport
		for _, typ := range test.types {
			exports = append(exports, cacheExport{CacheOption: CacheOption{Type: typ}})
		}
		if got := answerOf(exports, test.manifests)["cache.manifest"]; got != test.want {
			t.Errorf("%s: the client is told of %q, expected %q", test.name, got, test.want)
		}
	}
}
