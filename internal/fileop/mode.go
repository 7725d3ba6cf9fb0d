package fileop

import (
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/internal/safepath"
)

// Permission bits as chmod(1) counts them.
const (
	setuid  = 0o4000
	setgid  = 0o2000
	sticky  = 0o1000
	modeAll = setuid | setgid | 0o777
)

// modeChange is a change of permissions as chmod(1) takes it: "755",
// "u+x,go-w", "a=rX", "g=u". The umask counts as 0.
type modeChange []modeClause

type modeClause struct {
	who   uint32 // the bits it is about
	op    byte   // '+', '-' or '='
	perms string // letters of rwxXst, or one of ugo
}

func parseMode(s string) (modeChange, error) {
	bad := func(why string) error {
		return fmt.Errorf("mode %q: %s, want an octal number or changes such as u+x,go-w", s, why)
	}
	if s != "" && strings.Trim(s, "01234567") == "" {
		n, err := strconv.ParseUint(s, 8, 32)
		if err != nil || n > 0o7777 {
			return nil, bad("more than 7777")
		}
		return modeChange{{who: uint32(n), op: '#'}}, nil
	}
	var change modeChange
	for clause := range strings.SplitSeq(s, ",") {
		rest := strings.TrimLeft(clause, "ugoa")
		who := whoMask(clause[:len(clause)-len(rest)])
		if rest == "" {
			return nil, bad("no operator")
		}
		for rest != "" {
			op := rest[0]
			if !strings.ContainsRune("+-=", rune(op)) {
				return nil, bad(fmt.Sprintf("unknown operator %q", op))
			}
			end := strings.IndexAny(rest[1:], "+-=")
			if end < 0 {
				end = len(rest) - 1
			}
			perms := rest[1 : 1+end]
			rest = rest[1+end:]
			if !strings.Contains("ugo", perms) && strings.Trim(perms, "rwxXst") != "" || len(perms) > 1 && strings.Trim(perms, "rwxXst") != "" {
				return nil, bad(fmt.Sprintf("unknown permissions %q", perms))
			}
			change = append(change, modeClause{who, op, perms})
		}
	}
	return change, nil
}

func whoMask(who string) (mask uint32) {
	if who == "" {
		return modeAll
	}
	for _, w := range who {
		switch w {
		case 'u':
			mask |= setuid | 0o700
		case 'g':
			mask |= setgid | 0o070
		case 'o':
			mask |= 0o007
		case 'a':
			mask |= modeAll
		}
	}
	return mask
}

// apply returns mode with the change made.
func (c modeChange) apply(mode fs.FileMode) fs.FileMode {
	bits := safepath.UnixPerm(mode)
	// X looks at the mode as it is where its clause begins.
	for _, cl := range c {
		if cl.op == '#' {
			bits = cl.who
			continue
		}
		set := cl.bits(bits, mode.IsDir())
		switch cl.op {
		case '+':
			bits |= set
		case '-':
			bits &^= set
		case '=':
			bits = bits&^cl.who | set
		}
	}
	return mode&^(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) | safepath.FileMode(bits)
}

func (cl modeClause) bits(old uint32, dir bool) (set uint32) {
	triple := func(n uint32) { set |= n * 0o111 }
	for _, p := range cl.perms {
		switch p {
		case 'r':
			triple(4)
		case 'w':
			triple(2)
		case 'x':
			triple(1)
		case 'X':
			if dir || old&0o111 != 0 {
				triple(1)
			}
		case 'u':
			triple(old >> 6 & 7)
		case 'g':
			triple(old >> 3 & 7)
		case 'o':
			triple(old & 7)
		case 's':
			set |= setuid | setgid
		}
	}
	set &= cl.who
	if strings.Contains(cl.perms, "t") && cl.who&^0o007 != 0 {
		set |= sticky
	}
	return set
}
