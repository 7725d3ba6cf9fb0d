package fake

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kiln-build/kiln/internal/safepath"
)

// The programs that change the tree of files.

func (p *program) ls() error {
	set, names, err := p.flags("1aAlR")
	if err != nil {
		return err
	}
	if len(names) == 0 {
		names = []string{"."}
	}
	var failed error
	for _, name := range names {
		info, err := p.shell.view.stat(p.path(name), true)
		if err == nil && !info.IsDir() {
			p.list(set, name, info)
			continue
		}
		var entries []fs.DirEntry
		if err == nil {
			entries, err = p.shell.view.readDir(p.path(name))
		}
		if err != nil {
			failed = p.failFile(name, err)
			continue
		}
		if len(names) > 1 {
			fmt.Fprintf(p.stdout, "%s:\n", name)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") && !has(set, 'a') && !has(set, 'A') {
				continue
			}
			info, err := p.shell.view.stat(p.path(name)+"/"+e.Name(), false)
			if err == nil {
				p.list(set, e.Name(), info)
			}
		}
	}
	return failed
}

func (p *program) list(set map[byte]string, name string, info fs.FileInfo) {
	if has(set, 'l') {
		fmt.Fprintf(p.stdout, "%s %8d %s\n", info.Mode(), info.Size(), name)
		return
	}
	fmt.Fprintln(p.stdout, name)
}

func (p *program) mkdir() error {
	set, names, err := p.flags("pm:")
	if err != nil {
		return err
	}
	mode := uint64(0o777)
	if m, ok := set['m']; ok {
		if mode, err = strconv.ParseUint(m, 8, 12); err != nil {
			return p.fail("mode %q: want an octal number", m)
		}
	}
	for _, name := range names {
		at, err := p.shell.view.writable(p.path(name), true)
		if has(set, 'p') {
			err = p.shell.view.mkdirAll(p.path(name))
		} else if err == nil {
			err = at.root.Mkdir(at.rel, 0o755)
		}
		if _, asked := set['m']; err == nil && asked {
			err = at.root.Chmod(at.rel, safepath.FileMode(uint32(mode)))
		}
		if err != nil {
			return p.failFile(name, err)
		}
	}
	return nil
}

func (p *program) rmdir() error {
	_, names, err := p.flags("")
	if err != nil {
		return err
	}
	for _, name := range names {
		info, err := p.shell.view.stat(p.path(name), false)
		if err == nil && !info.IsDir() {
			err = syscall.ENOTDIR
		}
		if err == nil {
			err = p.remove(name, false)
		}
		if err != nil {
			return p.failFile(name, err)
		}
	}
	return nil
}

func (p *program) rm() error {
	set, names, err := p.flags("rRf")
	if err != nil {
		return err
	}
	recursive := has(set, 'r') || has(set, 'R')
	var failed error
	for _, name := range names {
		info, err := p.shell.view.stat(p.path(name), false)
		switch {
		case err == nil && info.IsDir() && !recursive:
			err = syscall.EISDIR
		case err == nil:
			err = p.remove(name, recursive)
		}
		if err != nil && (!has(set, 'f') || !errors.Is(err, fs.ErrNotExist)) {
			failed = p.failFile(name, err)
		}
	}
	return failed
}

func (p *program) remove(name string, all bool) error {
	at, err := p.shell.view.writable(p.path(name), false)
	if err != nil {
		return err
	}
	if at.rel == "." || at.file != "" {
		return syscall.EBUSY // a mount, or the root
	}
	if all {
		return at.root.RemoveAll(at.rel)
	}
	return at.root.Remove(at.rel)
}

func (p *program) touch() error {
	_, names, err := p.flags("c")
	if err != nil {
		return err
	}
	for _, name := range names {
		f, err := p.shell.view.openFile(p.path(name), os.O_WRONLY|os.O_CREATE, 0o644)
		if err == nil {
			f.Close()
		}
		at, werr := p.shell.view.writable(p.path(name), true)
		if errors.Is(err, syscall.EISDIR) {
			err = nil
		}
		if err = errors.Join(err, werr); err == nil {
			now := time.Now()
			err = at.root.Chtimes(at.rel, now, now)
		}
		if err != nil {
			return p.failFile(name, err)
		}
	}
	return nil
}

// chmod knows octal modes and [ugoa...][+-=][rwx...].
func (p *program) chmod() error {
	if len(p.args) < 3 {
		return p.fail("want a mode and files")
	}
	for _, name := range p.args[2:] {
		at, err := p.shell.view.writable(p.path(name), true)
		var info fs.FileInfo
		if err == nil {
			info, err = at.root.Stat(at.rel)
		}
		if err != nil {
			return p.failFile(name, err)
		}
		mode, ok := changeMode(info.Mode(), p.args[1])
		if !ok {
			return p.fail("mode %q: want an octal number or something like u+x", p.args[1])
		}
		if err := at.root.Chmod(at.rel, mode); err != nil {
			return p.failFile(name, err)
		}
	}
	return nil
}

func changeMode(mode fs.FileMode, change string) (fs.FileMode, bool) {
	if octal, err := strconv.ParseUint(change, 8, 12); err == nil {
		return safepath.FileMode(uint32(octal)), true
	}
	at := strings.IndexAny(change, "+-=")
	if at < 0 || strings.Trim(change[:at], "ugoa") != "" || strings.Trim(change[at+1:], "rwx") != "" {
		return 0, false
	}
	who := change[:at]
	if who == "" || strings.Contains(who, "a") {
		who = "ugo"
	}
	var bits, mask fs.FileMode
	for i, class := range "ogu" {
		if !strings.ContainsRune(who, class) {
			continue
		}
		mask |= 7 << (3 * i)
		for j, right := range "xwr" {
			if strings.ContainsRune(change[at+1:], right) {
				bits |= 1 << (3*i + j)
			}
		}
	}
	switch change[at] {
	case '+':
		return mode.Perm() | bits, true
	case '-':
		return mode.Perm() &^ bits, true
	}
	return mode.Perm()&^mask | bits, true
}

// chown checks its files and changes nothing: there is one user.
func (p *program) chown() error {
	_, names, err := p.flags("Rh")
	if err != nil {
		return err
	}
	if len(names) < 2 {
		return p.fail("want an owner and files")
	}
	for _, name := range names[1:] {
		if _, err := p.shell.view.stat(p.path(name), false); err != nil {
			return p.failFile(name, err)
		}
	}
	return nil
}

func (p *program) ln() error {
	set, names, err := p.flags("sfn")
	if err != nil {
		return err
	}
	if len(names) != 2 {
		return p.fail("want a target and a name")
	}
	target, name := names[0], p.into(names[1], names[0])
	at, err := p.shell.view.writable(p.path(name), false)
	if err == nil && has(set, 'f') {
		if err = at.root.Remove(at.rel); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	switch {
	case err != nil:
	case has(set, 's'):
		err = at.root.Symlink(target, at.rel)
	default:
		var old place
		if old, err = p.shell.view.resolve(p.path(target), false); err == nil {
			if old.root != at.root {
				err = syscall.EXDEV
			} else {
				err = at.root.Link(old.rel, at.rel)
			}
		}
	}
	if err != nil {
		return p.failFile(name, err)
	}
	return nil
}

func (p *program) readlink() error {
	_, names, err := p.flags("")
	if err != nil {
		return err
	}
	for _, name := range names {
		at, err := p.shell.view.resolve(p.path(name), false)
		var target string
		if err == nil {
			target, err = at.root.Readlink(at.rel)
		}
		if err != nil {
			return p.failFile(name, err)
		}
		fmt.Fprintln(p.stdout, target)
	}
	return nil
}

// into is where a file goes that is copied or moved to dest: inside, if that
// is a folder.
func (p *program) into(dest, source string) string {
	if info, err := p.shell.view.stat(p.path(dest), true); err == nil && info.IsDir() {
		return dest + "/" + path.Base(source)
	}
	return dest
}

func (p *program) mv() error {
	_, names, err := p.flags("f")
	if err != nil {
		return err
	}
	if len(names) < 2 {
		return p.fail("want a file and where it goes")
	}
	dest := names[len(names)-1]
	for _, name := range names[:len(names)-1] {
		to := p.into(dest, name)
		from, err := p.shell.view.writable(p.path(name), false)
		var at place
		if err == nil {
			at, err = p.shell.view.writable(p.path(to), false)
		}
		switch {
		case err != nil:
		case from.root == at.root:
			err = at.root.Rename(from.rel, at.rel)
		default: // to another mount
			if err = p.copyTree(p.path(name), p.path(to)); err == nil {
				err = p.remove(name, true)
			}
		}
		if err != nil {
			return p.failFile(name, err)
		}
	}
	return nil
}

func (p *program) cp() error {
	set, names, err := p.flags("rRapfdLP")
	if err != nil {
		return err
	}
	if len(names) < 2 {
		return p.fail("want a file and where it goes")
	}
	keepLinks := has(set, 'a') || has(set, 'd') || has(set, 'P') || has(set, 'r') || has(set, 'R')
	recursive := has(set, 'a') || has(set, 'r') || has(set, 'R')
	dest := names[len(names)-1]
	for _, name := range names[:len(names)-1] {
		info, err := p.shell.view.stat(p.path(name), !keepLinks)
		if err == nil && info.IsDir() && !recursive {
			err = syscall.EISDIR
		}
		from := p.path(name)
		if err == nil && !keepLinks && info.Mode().IsRegular() {
			err = p.copyFile(from, p.path(p.into(dest, name)), info)
		} else if err == nil {
			err = p.copyTree(from, p.path(p.into(dest, name)))
		}
		if err != nil {
			return p.failFile(name, err)
		}
	}
	return nil
}

// copyTree copies a file, link or folder, with all in it.
func (p *program) copyTree(from, to string) error {
	v := p.shell.view
	info, err := v.stat(from, false)
	if err != nil {
		return err
	}
	switch {
	case info.Mode().IsRegular():
		return p.copyFile(from, to, info)
	case info.Mode()&fs.ModeSymlink != 0:
		source, err := v.resolve(from, false)
		if err != nil {
			return err
		}
		target, err := source.root.Readlink(source.rel)
		if err != nil {
			return err
		}
		at, err := v.writable(to, false)
		if err != nil {
			return err
		}
		return at.root.Symlink(target, at.rel)
	case !info.IsDir():
		return errors.New("can not copy this kind of file")
	}
	entries, err := v.readDir(from)
	if err != nil {
		return err
	}
	at, err := v.writable(to, true)
	if err != nil {
		return err
	}
	if err := at.root.Mkdir(at.rel, info.Mode().Perm()); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, e := range entries {
		if err := p.copyTree(from+"/"+e.Name(), to+"/"+e.Name()); err != nil {
			return err
		}
	}
	return nil
}

func (p *program) copyFile(from, to string, info fs.FileInfo) error {
	in, err := p.shell.view.openFile(from, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := p.shell.view.openFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
