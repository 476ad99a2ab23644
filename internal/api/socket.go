package api

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// maxPath is the longest path that a unix socket can have, unix(7).
const maxPath = 107

// NoGroup keeps a socket to its owner.
const NoGroup = -1

// Listen makes the socket, in place of one that a killed weir left: the caller sees to it
// that no other weir has it. Its mode is 0600, or 0660 with a group. Close removes it.
//
// The file is made in a directory that nobody else can enter, and renamed once it is
// right: there is no moment in which others can connect, and none without a socket.
func Listen(path string, group int) (net.Listener, error) {
	dir := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	inside := filepath.Join(dir, "s")
	if n := max(len(path), len(inside)); n > maxPath {
		return nil, fmt.Errorf("%s: the path of the socket is %d bytes too long", path, n-maxPath)
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: inside, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // it will have another name
	if err := publish(inside, path, group); err != nil {
		l.Close()
		return nil, err
	}
	return &socket{UnixListener: l, path: path}, nil
}

func publish(inside, path string, group int) error {
	mode := os.FileMode(0o600)
	if group != NoGroup {
		mode = 0o660
		if err := os.Chown(inside, -1, group); err != nil {
			return fmt.Errorf("give the socket to group %d: %w (weir must be root or of that group)", group, err)
		}
	}
	if err := os.Chmod(inside, mode); err != nil {
		return err
	}
	return os.Rename(inside, path)
}

// socket removes its file when it is closed.
type socket struct {
	*net.UnixListener
	path string
}

// Close implements net.Listener.
func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if err == nil { // the first time
		err = os.Remove(s.path)
	}
	return err
}
