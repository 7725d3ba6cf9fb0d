package fileop

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/llb"
)

const passwd = "root:x:0:0:root:/root:/bin/sh\n# a comment\nbroken\nworse:x:zero:0\n" +
	"www:x:33:34::/:\r\nbig:x:4294967296:0::/:\n1000:x:0:0:::\nwww:x:99:99:::\n"

const group = "root:x:0:\nwheel:x:10:root,www\nweb:x:34:\naudio:x:29:www\nbroken:x\nbig:x:4294967296:www\n"

func withUsers(t *testing.T) (*safepath.Root, string) {
	r, dir := root(t)
	must(t, os.Mkdir(filepath.Join(dir, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(passwd), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "etc/group"), []byte(group), 0o644))
	return r, dir
}

func TestLookupUser(t *testing.T) {
	r, _ := withUsers(t)
	for _, c := range []struct {
		user     string
		uid, gid uint32
		groups   []uint32
		err      string
	}{
		{"", 0, 0, []uint32{10}, ""},
		{"root", 0, 0, []uint32{10}, ""},
		{"0", 0, 0, []uint32{10}, ""},
		{"www", 33, 34, []uint32{10, 29}, ""},
		{"33", 33, 34, []uint32{10, 29}, ""},
		{"www:audio", 33, 29, nil, ""},
		{"www:7", 33, 7, nil, ""},
		{"5:6", 5, 6, nil, ""},
		{"5", 5, 0, nil, ""},
		{"5:wheel", 5, 10, nil, ""},
		{"1000", 1000, 0, nil, ""}, // and not the one by that name, who is root
		{"4294967294:4294967294", 4294967294, 4294967294, nil, ""},
		{"4294967295", 0, 0, nil, "out of range"},
		{"4294967296", 0, 0, nil, "out of range"},
		{"4294967296:0", 0, 0, nil, "out of range"},
		{"0:4294967296", 0, 0, nil, "out of range"},
		{"99999999999999999999999", 0, 0, nil, "out of range"},
		{"-1", 0, 0, nil, "unable to find user -1"},
		{"+0", 0, 0, nil, "unable to find user"},
		{"0x0", 0, 0, nil, "unable to find user"},
		{"nobody", 0, 0, nil, "unable to find user nobody"},
		{"broken", 0, 0, nil, "unable to find user broken"},
		{"worse", 0, 0, nil, "unable to find user worse"},
		{"big", 0, 0, nil, "unable to find user big"},
		{"www:none", 0, 0, nil, "unable to find group none"},
		{":", 0, 0, []uint32{10}, ""},
		{"www:", 33, 34, []uint32{10, 29}, ""},
		{":audio", 0, 29, nil, ""},
		{":9", 0, 9, nil, ""},
	} {
		uid, gid, groups, err := LookupUser(r, c.user)
		if c.err != "" {
			wantErr(t, err, c.err)
			continue
		}
		if err != nil || uid != c.uid || gid != c.gid || !slices.Equal(groups, c.groups) {
			t.Errorf("%q is %d:%d %v, %v; want %d:%d %v", c.user, uid, gid, groups, err, c.uid, c.gid, c.groups)
		}
	}
}

func TestLookupUserWithoutFiles(t *testing.T) {
	r, _ := root(t)
	if uid, gid, groups, err := LookupUser(r, "12"); err != nil || uid != 12 || gid != 0 || groups != nil {
		t.Errorf("%d %d %v %v", uid, gid, groups, err)
	}
	if uid, gid, groups, err := LookupUser(r, ""); err != nil || uid != 0 || gid != 0 || groups != nil {
		t.Errorf("without accounts, nobody is %d %d %v %v", uid, gid, groups, err)
	}
	_, _, _, err := LookupUser(r, "root")
	wantErr(t, err, "unable to find user root")
}

// Images bring these instead of a passwd file.
func TestHostileUserFiles(t *testing.T) {
	for name, plant := range map[string]func(p string) error{
		"fifo":      func(p string) error { return unix.Mkfifo(p, 0o644) },
		"device":    func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) },
		"link":      func(p string) error { return os.Symlink("zero", p) },
		"directory": func(p string) error { return os.Mkdir(p, 0o755) },
		"huge":      func(p string) error { return errorsJoin(os.WriteFile(p, nil, 0o644), os.Truncate(p, 1<<40)) },
	} {
		t.Run(name, func(t *testing.T) {
			r, dir := root(t)
			must(t, os.Mkdir(filepath.Join(dir, "etc"), 0o755))
			must(t, unix.Mknod(filepath.Join(dir, "etc/zero"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))))
			must(t, plant(filepath.Join(dir, "etc/passwd")))
			_, _, _, err := LookupUser(r, "www")
			wantErr(t, err, "/etc/passwd")
			if err != nil && strings.Contains(err.Error(), "unable to find") {
				t.Errorf("error %v: the file was read", err)
			}
		})
	}
	r, dir := root(t)
	must(t, os.WriteFile(filepath.Join(dir, "../passwd"), []byte("www:x:1:1:::\n"), 0o644))
	defer os.Remove(filepath.Join(dir, "../passwd"))
	must(t, os.Mkdir(filepath.Join(dir, "etc"), 0o755))
	must(t, os.Symlink("../../passwd", filepath.Join(dir, "etc/passwd")))
	_, _, _, err := LookupUser(r, "www")
	wantErr(t, err, "unable to find user www")
}

func errorsJoin(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestResolveOwner(t *testing.T) {
	_, dir := withUsers(t)
	asked := 0
	open := func(input int) (*safepath.Root, error) {
		if input != 3 {
			t.Errorf("input %d was asked for", input)
		}
		asked++
		return safepath.Open(dir)
	}
	byName := func(name string) *llb.Owner { return &llb.Owner{Name: name, Input: 3, ID: 77} }
	for _, c := range []struct {
		own  *llb.Ownership
		want *Owner
	}{
		{nil, nil},
		{&llb.Ownership{}, &Owner{0, 0}},
		{&llb.Ownership{User: &llb.Owner{ID: 5}}, &Owner{5, 5}},
		{&llb.Ownership{User: &llb.Owner{ID: 5}, Group: &llb.Owner{ID: 6}}, &Owner{5, 6}},
		{&llb.Ownership{Group: &llb.Owner{ID: 6}}, &Owner{0, 6}},
		{&llb.Ownership{User: byName("www")}, &Owner{33, 34}},
		{&llb.Ownership{User: byName("www"), Group: byName("audio")}, &Owner{33, 29}},
		{&llb.Ownership{User: byName("nobody"), Group: byName("none")}, &Owner{0, 0}},
	} {
		got, err := ResolveOwner(c.own, open)
		if err != nil || (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%+v is %v, %v; want %v", c.own, got, err, c.want)
		}
	}
	nowhere := &llb.Ownership{User: &llb.Owner{Name: "www", Input: llb.None}}
	if got, err := ResolveOwner(nowhere, open); err == nil || !strings.Contains(err.Error(), `"www" is looked up in /etc/passwd`) {
		t.Errorf("a name in an empty file system is %v, %v", got, err)
	}
	if asked != 5 {
		t.Errorf("the input was opened %d times", asked)
	}
}
