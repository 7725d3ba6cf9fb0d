package op

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb"
)

// full is an exec that has something of everything.
func full() *llb.ExecOp {
	return &llb.ExecOp{
		Args: []string{"a"}, Env: []string{"A=b"}, Cwd: "/w", User: "u", Hostname: "h", CgroupParent: "/c",
		ExtraHosts: []llb.HostIP{{Host: "h", IP: "1.2.3.4"}}, Ulimits: []llb.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}},
		ValidExitCodes: []int{1}, Proxy: &llb.ProxyEnv{HTTPProxy: "p"},
		Mounts: []llb.Mount{
			{Dest: "/"},
			{Kind: llb.MountTmpfs, Input: llb.None, Output: llb.None, Dest: "/t", TmpfsSize: 5},
			{Kind: llb.MountSecret, Input: llb.None, Output: llb.None, Dest: "/s", Secret: &llb.SecretMount{ID: "s", Mode: 0o400}},
		},
		SecretEnv: []llb.SecretEnv{{ID: "e", Name: "E"}}, Devices: []llb.CDIDevice{{Name: "d"}},
	}
}

// change changes a value to another of its type.
func change(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Uint32:
		v.SetUint(v.Uint() + 1)
	default:
		panic("change: " + v.Kind().String())
	}
}

// leaves calls f with the path of each plain value in v, and a way to it from another v.
func leaves(t reflect.Type, v reflect.Value, path string, way func(reflect.Value) reflect.Value, f func(string, func(reflect.Value) reflect.Value)) {
	switch t.Kind() {
	case reflect.Struct:
		for i := range t.NumField() {
			leaves(t.Field(i).Type, v.Field(i), path+"."+t.Field(i).Name, func(r reflect.Value) reflect.Value { return way(r).Field(i) }, f)
		}
	case reflect.Slice:
		for i := range v.Len() {
			leaves(t.Elem(), v.Index(i), path, func(r reflect.Value) reflect.Value { return way(r).Index(i) }, f)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			leaves(t.Elem(), v.Elem(), path, func(r reflect.Value) reflect.Value { return way(r).Elem() }, f)
		}
	default:
		f(path, way)
	}
}

// TestKeysCoverEverything: each field of an exec changes its key, but for those
// below, with the reason. What a cache holds can then not pass for the result of
// another step (CVE-2024-24557).
func TestKeysCoverEverything(t *testing.T) {
	amd64 := ocispecs.Platform{OS: "linux", Architecture: "amd64"}
	digest := func(o *llb.ExecOp, p ocispecs.Platform) string {
		d, err := execDigest(o, p)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	left := map[string]string{
		".ExtraHosts.IP":       "an address is of the moment",
		".Proxy.HTTPProxy":     "is no part of what a step makes, as in BuildKit",
		".Proxy.HTTPSProxy":    "the same",
		".Proxy.FTPProxy":      "the same",
		".Proxy.NoProxy":       "the same",
		".Proxy.AllProxy":      "the same",
		".Mounts.Selector":     "is with the input in the key",
		".Mounts.CacheID":      "counts for a cache alone",
		".Mounts.CacheSharing": "counts for a cache alone",
	}
	was := digest(full(), amd64)
	found := map[string]bool{} // path -> whether a change of it changed the key
	v := reflect.ValueOf(full()).Elem()
	leaves(v.Type(), v, "", func(r reflect.Value) reflect.Value { return r }, func(path string, way func(reflect.Value) reflect.Value) {
		o := full()
		change(way(reflect.ValueOf(o).Elem()))
		found[path] = found[path] || digest(o, amd64) != was
	})
	for _, path := range slices.Sorted(maps.Keys(found)) {
		if _, ok := left[path]; found[path] == ok {
			t.Errorf("a change of %s changes the key: %v", strings.TrimPrefix(path, "."), found[path])
		}
	}
	for path := range left {
		if _, ok := found[path]; !ok {
			t.Errorf("%s is no field of an exec", path)
		}
	}
	for _, p := range []ocispecs.Platform{
		{OS: "windows", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}, {OS: "linux", Architecture: "amd64", Variant: "v2"},
		{OS: "linux", Architecture: "amd64", OSVersion: "1"}, {OS: "linux", Architecture: "amd64", OSFeatures: []string{"f"}},
	} {
		if digest(full(), p) == was {
			t.Errorf("%+v is not in the key", p)
		}
	}
}
