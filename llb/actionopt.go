package llb

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// MkdirInfo is how to make a directory. It is an option of [Mkdir].
type MkdirInfo struct {
	MakeParents bool
	ChownOpt    *ChownOpt
	CreatedTime *time.Time
}

// MkdirOption is an option of [Mkdir].
type MkdirOption interface{ SetMkdirOption(*MkdirInfo) }

// SetMkdirOption sets all options.
func (i *MkdirInfo) SetMkdirOption(to *MkdirInfo) { *to = *i }

type mkdirOptionFunc func(*MkdirInfo)

func (f mkdirOptionFunc) SetMkdirOption(i *MkdirInfo) { f(i) }

// WithParents makes missing parents, and accepts a directory that exists.
func WithParents(b bool) MkdirOption {
	return mkdirOptionFunc(func(i *MkdirInfo) { i.MakeParents = b })
}

// MkfileInfo is how to write a file. It is an option of [Mkfile].
type MkfileInfo struct {
	ChownOpt    *ChownOpt
	CreatedTime *time.Time
}

// MkfileOption is an option of [Mkfile].
type MkfileOption interface{ SetMkfileOption(*MkfileInfo) }

// SetMkfileOption sets all options.
func (i *MkfileInfo) SetMkfileOption(to *MkfileInfo) { *to = *i }

// SymlinkInfo is how to make a link. It is an option of [Symlink].
type SymlinkInfo struct {
	ChownOpt    *ChownOpt
	CreatedTime *time.Time
}

// SymlinkOption is an option of [Symlink].
type SymlinkOption interface{ SetSymlinkOption(*SymlinkInfo) }

// SetSymlinkOption sets all options.
func (i *SymlinkInfo) SetSymlinkOption(to *SymlinkInfo) { *to = *i }

// RmInfo is how to remove. It is an option of [Rm].
type RmInfo struct {
	AllowNotFound bool
	AllowWildcard bool
}

// RmOption is an option of [Rm].
type RmOption interface{ SetRmOption(*RmInfo) }

// SetRmOption sets all options.
func (i *RmInfo) SetRmOption(to *RmInfo) { *to = *i }

type rmOptionFunc func(*RmInfo)

func (f rmOptionFunc) SetRmOption(i *RmInfo) { f(i) }

// WithAllowNotFound accepts that there is nothing to remove.
func WithAllowNotFound(b bool) RmOption { return rmOptionFunc(func(i *RmInfo) { i.AllowNotFound = b }) }

// WithAllowWildcard makes the path a pattern.
func WithAllowWildcard(b bool) RmOption { return rmOptionFunc(func(i *RmInfo) { i.AllowWildcard = b }) }

// CopyInfo is how to copy. It is an option of [Copy].
type CopyInfo struct {
	Mode                           *ChmodOpt
	FollowSymlinks                 bool
	CopyDirContentsOnly            bool
	IncludePatterns                []string
	ExcludePatterns                []string
	RequiredPaths                  []string
	AttemptUnpack                  bool
	CreateDestPath                 bool
	AllowWildcard                  bool
	AllowEmptyWildcard             bool
	ChownOpt                       *ChownOpt
	CreatedTime                    *time.Time
	AlwaysReplaceExistingDestPaths bool
}

// CopyOption is an option of [Copy].
type CopyOption interface{ SetCopyOption(*CopyInfo) }

// SetCopyOption sets all options.
func (i *CopyInfo) SetCopyOption(to *CopyInfo) { *to = *i }

type excludePatterns []string

func (e excludePatterns) SetCopyOption(i *CopyInfo) {
	i.ExcludePatterns = append(i.ExcludePatterns, e...)
}

// WithExcludePatterns leaves out paths that match.
func WithExcludePatterns(patterns []string) CopyOption { return excludePatterns(patterns) }

// ChmodOpt sets the mode of what is copied, in bits or in symbols ("u+x,go-w").
type ChmodOpt struct {
	Mode    os.FileMode
	ModeStr string
}

// SetCopyOption sets the mode.
func (o ChmodOpt) SetCopyOption(i *CopyInfo) { i.Mode = &o }

// ChownOpt sets the owner of files. It is an option of all actions but [Rm].
type ChownOpt struct {
	User  *UserOpt
	Group *UserOpt
}

// UserOpt is a user or group. A name, if set, is looked up in the State.
type UserOpt struct {
	UID  int
	Name string
}

// ChownOption is an option that sets the owner.
type ChownOption interface {
	MkdirOption
	MkfileOption
	CopyOption
	SymlinkOption
}

// SetMkdirOption sets the owner.
func (o ChownOpt) SetMkdirOption(i *MkdirInfo) { i.ChownOpt = &o }

// SetMkfileOption sets the owner.
func (o ChownOpt) SetMkfileOption(i *MkfileInfo) { i.ChownOpt = &o }

// SetCopyOption sets the owner.
func (o ChownOpt) SetCopyOption(i *CopyInfo) { i.ChownOpt = &o }

// SetSymlinkOption sets the owner.
func (o ChownOpt) SetSymlinkOption(i *SymlinkInfo) { i.ChownOpt = &o }

func (o *ChownOpt) owner(base int) *Ownership {
	if o == nil {
		return nil
	}
	return &Ownership{User: o.User.owner(base), Group: o.Group.owner(base)}
}

func (u *UserOpt) owner(base int) *Owner {
	switch {
	case u == nil:
		return nil
	case u.Name != "":
		return &Owner{Name: u.Name, Input: base}
	default:
		return &Owner{ID: uint32(u.UID)}
	}
}

// WithUser sets the owner as user or user:group, each a number or a name.
func WithUser(name string) ChownOption {
	user, group, _ := strings.Cut(name, ":")
	o := ChownOpt{User: parseUser(user)}
	if group != "" {
		o.Group = parseUser(group)
	}
	return o
}

func parseUser(s string) *UserOpt {
	if s == "root" {
		return &UserOpt{}
	}
	if id, err := strconv.ParseInt(s, 10, 32); err == nil {
		return &UserOpt{UID: int(id)}
	}
	return &UserOpt{Name: s}
}

// WithUIDGID sets the owner by numbers.
func WithUIDGID(uid, gid int) ChownOption {
	return ChownOpt{User: &UserOpt{UID: uid}, Group: &UserOpt{UID: gid}}
}

// CreatedTime sets the time of files. It is an option of all actions but [Rm].
type CreatedTime time.Time

// WithCreatedTime sets the time of files.
func WithCreatedTime(t time.Time) CreatedTime { return CreatedTime(t) }

// SetMkdirOption sets the time.
func (c CreatedTime) SetMkdirOption(i *MkdirInfo) { i.CreatedTime = (*time.Time)(&c) }

// SetMkfileOption sets the time.
func (c CreatedTime) SetMkfileOption(i *MkfileInfo) { i.CreatedTime = (*time.Time)(&c) }

// SetSymlinkOption sets the time.
func (c CreatedTime) SetSymlinkOption(i *SymlinkInfo) { i.CreatedTime = (*time.Time)(&c) }

// SetCopyOption sets the time.
func (c CreatedTime) SetCopyOption(i *CopyInfo) { i.CreatedTime = (*time.Time)(&c) }
