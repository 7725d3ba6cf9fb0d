package fileop

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/llb"
)

// maxUserFile caps /etc/passwd and /etc/group; the files come from images.
const maxUserFile = 10 << 20

// ResolveOwner finds the numbers of an action's owner. root opens the file
// system that a name is looked up in, by [llb.Owner.Input], and its result is
// closed here. A name that is not known is 0, and a user without group brings
// the group of his entry, or of his own number, as in BuildKit. Unlike there, a
// number that is no id is refused: as a name that is not known it would be root.
func ResolveOwner(c *llb.Ownership, root func(input int) (*safepath.Root, error)) (*Owner, error) {
	if c == nil {
		return nil, nil
	}
	for _, o := range []*llb.Owner{c.User, c.Group} {
		if err := checkOwner(o); err != nil {
			return nil, err
		}
	}
	var o Owner
	if u := c.User; u != nil {
		o = Owner{u.ID, u.ID}
		if u.Name != "" {
			users, err := named(u, root, "/etc/passwd", parseUser)
			if err != nil {
				return nil, err
			}
			o = Owner{}
			if i := slices.IndexFunc(users, func(e account) bool { return e.name == u.Name }); i >= 0 {
				o = Owner{users[i].id, users[i].gid}
			}
		}
	}
	if g := c.Group; g != nil {
		if g.Name == "" {
			o.GID = g.ID
		} else {
			groups, err := named(g, root, "/etc/group", parseGroup)
			if err != nil {
				return nil, err
			}
			if i := slices.IndexFunc(groups, func(e account) bool { return e.name == g.Name }); i >= 0 {
				o.GID = groups[i].id
			}
		}
	}
	return &o, nil
}

// checkOwner refuses numbers that are no ids (CVE-2024-40635).
func checkOwner(o *llb.Owner) error {
	if o == nil || o.Name == "" && o.ID != math.MaxUint32 {
		return nil
	}
	digits := strings.TrimLeft(o.Name, "-+")
	if o.Name == "" || digits != "" && strings.Trim(digits, "0123456789") == "" {
		name := o.Name
		if name == "" {
			name = strconv.FormatUint(uint64(o.ID), 10)
		}
		return fmt.Errorf("owner %s is out of range: expected a name, or an id of at most %d", name, uint32(math.MaxUint32-1))
	}
	return nil
}

func named(o *llb.Owner, open func(int) (*safepath.Root, error), file string, parse func([]string) (account, bool)) ([]account, error) {
	if o.Input == llb.None {
		return nil, fmt.Errorf("invalid user index -1: %q is looked up in %s, but the step starts from an empty file system (scratch, or a copy of its own layer with --link): expected a numeric id", o.Name, file)
	}
	root, err := open(o.Input)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return readAccounts(root, file, parse)
}

// LookupUser finds whom "user[:group]" means in a root file system; each side
// is a number or a name. Nothing at all means root, with what can be found out of
// its groups; no user before the colon means root, and nothing behind it no group. groups are the supplementary groups of a user given without group. Only digits are always a
// number, never a name, so that no entry of an image can turn one user into
// another; numbers go up to 4294967294.
func LookupUser(root *safepath.Root, name string) (uid, gid uint32, groups []uint32, err error) {
	if name == "" {
		if uid, gid, groups, err = LookupUser(root, "0"); err != nil {
			return 0, 0, nil, nil // as if there were no accounts
		}
		return uid, gid, groups, nil
	}
	user, group, _ := strings.Cut(name, ":")
	hasGroup := group != ""
	if user == "" {
		user = "0"
	}
	uid, byID, err := number(user)
	if err != nil {
		return 0, 0, nil, fmt.Errorf("user %q: %w", name, err)
	}
	var entry account
	if !byID || !hasGroup {
		users, err := readAccounts(root, "/etc/passwd", parseUser)
		if err != nil {
			return 0, 0, nil, fmt.Errorf("user %q: %w", name, err)
		}
		i := slices.IndexFunc(users, func(e account) bool {
			return byID && e.id == uid || !byID && e.name == user
		})
		if i >= 0 {
			entry = users[i]
			uid, gid = entry.id, entry.gid
		} else if !byID {
			return 0, 0, nil, fmt.Errorf("unable to find user %s: no matching entries in passwd file", user)
		}
	}
	if hasGroup {
		gid, err = lookupGroup(root, group)
		return uid, gid, nil, err
	}
	if entry.name == "" {
		return uid, gid, nil, nil
	}
	all, err := readAccounts(root, "/etc/group", parseGroup)
	if err != nil {
		return 0, 0, nil, fmt.Errorf("user %q: %w", name, err)
	}
	for _, g := range all {
		if slices.Contains(g.members, entry.name) && !slices.Contains(groups, g.id) {
			groups = append(groups, g.id)
		}
	}
	return uid, gid, groups, nil
}

func lookupGroup(root *safepath.Root, group string) (uint32, error) {
	gid, byID, err := number(group)
	if err != nil {
		return 0, fmt.Errorf("group %q: %w", group, err)
	}
	if byID {
		return gid, nil
	}
	groups, err := readAccounts(root, "/etc/group", parseGroup)
	if err != nil {
		return 0, fmt.Errorf("group %q: %w", group, err)
	}
	if i := slices.IndexFunc(groups, func(e account) bool { return e.name == group }); i >= 0 {
		return groups[i].id, nil
	}
	return 0, fmt.Errorf("unable to find group %s: no matching entries in group file", group)
}

// number reads an id; ok is false for a name.
func number(s string) (n uint32, ok bool, err error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false, nil
	}
	v, err := strconv.ParseUint(s, 10, 32)
	if err != nil || v == math.MaxUint32 { // which chown takes for "keep"
		return 0, true, fmt.Errorf("id %s is out of range, want at most %d", s, uint32(math.MaxUint32-1))
	}
	return uint32(v), true, nil
}

// account is a line of passwd or group.
type account struct {
	name    string
	id      uint32
	gid     uint32   // of a user
	members []string // of a group
}

// readAccounts reads a user file. One that is not there has no entries; lines
// that are not of the form are passed over.
func readAccounts(root *safepath.Root, name string, parse func([]string) (account, bool)) ([]account, error) {
	b, err := root.ReadFile(name, maxUserFile)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, failed("read", name, err)
	}
	var all []account
	for line := range strings.SplitSeq(string(b), "\n") {
		if a, ok := parse(strings.Split(strings.TrimSpace(line), ":")); ok {
			all = append(all, a)
		}
	}
	return all, nil
}

// parseUser reads name:password:uid:gid:...
func parseUser(f []string) (account, bool) {
	if len(f) < 4 || f[0] == "" {
		return account{}, false
	}
	uid, ok1, err1 := number(f[2])
	gid, ok2, err2 := number(f[3])
	return account{name: f[0], id: uid, gid: gid}, ok1 && ok2 && err1 == nil && err2 == nil
}

// parseGroup reads name:password:gid:member,member
func parseGroup(f []string) (account, bool) {
	if len(f) < 3 || f[0] == "" {
		return account{}, false
	}
	gid, ok, err := number(f[2])
	a := account{name: f[0], id: gid}
	if len(f) > 3 && f[3] != "" {
		a.members = strings.Split(f[3], ",")
	}
	return a, ok && err == nil
}
