package keep

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// WriteFile replaces a file at once: a full disk or a crash leaves the one before. It is
// readable by its owner alone, who is, if root writes, the directory's: what `weir apply`
// of root keeps, a `weir run` of another user can read.
func WriteFile(path string, text []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(text)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	sameOwner(tmp.Name())
	return os.Rename(tmp.Name(), path)
}

// sameOwner gives what root made to the owner of the directory in which it is. Where that
// cannot be, root has it: it is kept all the same.
func sameOwner(path string) {
	if os.Geteuid() != 0 {
		return
	}
	info, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 {
		_ = os.Lchown(path, int(owner.Uid), int(owner.Gid))
	}
}
