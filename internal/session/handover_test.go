package session

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// handoverPair is both ends of a connection.
func handoverPair(t *testing.T) (*givingConn, *takingConn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	gives, _, err := Handover().ServerHandshake(server)
	if err != nil {
		t.Fatal(err)
	}
	takes, _, err := Handover().ClientHandshake(context.Background(), "", client)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = gives.Close(), takes.Close() }) // one end may be closed
	return gives.(*givingConn), takes.(*takingConn)
}

// pass sends files with a byte each and reads that.
func pass(t *testing.T, gives *givingConn, takes *takingConn, files ...*os.File) {
	t.Helper()
	for _, f := range files {
		if err := gives.add(f); err != nil {
			t.Fatal(err)
		}
		if _, err := gives.Write([]byte("xy")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(takes, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
	}
}

func tempFile(t *testing.T) (*os.File, unix.Stat_t) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // nothing is written
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return f, st
}

// TestHandover hands files over: each is taken by its own name and once, those that
// nobody asks for are let go of, and none is kept when the connection ends.
func TestHandover(t *testing.T) {
	gives, takes := handoverPair(t)
	one, nameOne := tempFile(t)
	two, nameTwo := tempFile(t)
	pass(t, gives, takes, one, two)
	_, strange := tempFile(t)
	if f := takes.take(strange.Dev, strange.Ino); f != nil {
		t.Errorf("a file that was not handed over was taken")
	}
	for _, name := range []unix.Stat_t{nameTwo, nameOne} {
		f := takes.take(name.Dev, name.Ino)
		if f == nil {
			t.Fatalf("inode %d is missing", name.Ino)
		}
		var st unix.Stat_t
		if err := errors.Join(unix.Fstat(int(f.Fd()), &st), f.Close()); err != nil || st.Ino != name.Ino {
			t.Errorf("inode %d was taken for %d, %v", st.Ino, name.Ino, err)
		}
		if takes.take(name.Dev, name.Ino) != nil {
			t.Errorf("inode %d was taken twice", name.Ino)
		}
	}
	many := make([]*os.File, 3*maxHanded)
	for i := range many {
		many[i] = two
	}
	pass(t, gives, takes, append([]*os.File{one}, many...)...)
	if n := len(takes.files); n != maxHanded {
		t.Errorf("%d files are kept that nobody asked for, want %d", n, maxHanded)
	}
	if takes.take(nameOne.Dev, nameOne.Ino) != nil {
		t.Error("the oldest file is kept")
	}
	kept := takes.files[0]
	if err := takes.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := kept.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a file is open after the connection has ended: %v", err)
	}
	if err := gives.add(one); err != nil {
		t.Fatal(err)
	}
	if err := gives.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(gives.waiting); n != 0 {
		t.Errorf("%d files wait for a connection that has ended", n)
	}
	if err := gives.add(one); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a file for a connection that has ended: %v", err)
	}
}

// TestHandoverEnds has both kinds of connection end as others do.
func TestHandoverEnds(t *testing.T) {
	gives, takes := handoverPair(t)
	if err := gives.Close(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(takes); len(rest) != 0 || err != nil {
		t.Errorf("read %d bytes, %v, want the end", len(rest), err)
	}
	if _, err := gives.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write to a closed connection: %v", err)
	}
	if err := takes.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := takes.Read(make([]byte, 1)); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("read %d bytes of a closed connection, %v", n, err)
	}
}
