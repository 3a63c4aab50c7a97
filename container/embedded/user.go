package embedded

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container"
)

// maxAccounts bounds how much of an image's passwd and group files is read.
const maxAccounts = 4 << 20

// account is a line of /etc/passwd.
type account struct {
	name     string
	uid, gid uint32
	home     string
}

// resolveUser finds out who u is by the accounts in rootfs; fallback is the image's user. It
// returns the home directory, "" if none is known.
func resolveUser(rootfs string, u container.User, fallback string) (container.ResolvedUser, string, error) {
	name := u.Name
	if u.UID == nil && name == "" {
		name = fallback
	}
	accounts, err := readAccounts(rootfs)
	if err != nil {
		return container.ResolvedUser{}, "", err
	}
	who, group, err := pickAccount(accounts, u, name)
	if err != nil {
		return container.ResolvedUser{}, "", err
	}
	out := container.ResolvedUser{UID: who.uid, GID: who.gid}
	groups, err := readGroups(rootfs)
	if err != nil {
		return container.ResolvedUser{}, "", err
	}
	switch {
	case u.GID != nil:
		out.GID = *u.GID
	case group != "":
		if out.GID, err = groupID(groups, group); err != nil {
			return container.ResolvedUser{}, "", err
		}
	}
	// The primary group is among the supplementary ones too, as setgroups replaces all.
	out.Groups = append(out.Groups, out.GID)
	if !u.StrictGroups && who.name != "" {
		for _, g := range groups {
			if slices.Contains(g.members, who.name) {
				out.Groups = append(out.Groups, g.gid)
			}
		}
	}
	out.Groups = append(out.Groups, u.Groups...)
	slices.Sort(out.Groups)
	out.Groups = slices.Compact(out.Groups)
	return out, who.home, nil
}

// pickAccount finds the account for a UID or a name of the form "user[:group]", and the group named.
func pickAccount(accounts []account, u container.User, name string) (account, string, error) {
	byID := func(uid uint32) account {
		for _, a := range accounts {
			if a.uid == uid {
				return a
			}
		}
		return account{uid: uid}
	}
	if u.UID != nil {
		return byID(*u.UID), "", nil
	}
	user, group, _ := strings.Cut(name, ":")
	if user == "" {
		return byID(0), group, nil
	}
	for _, a := range accounts {
		if a.name == user {
			return a, group, nil
		}
	}
	if uid, ok := parseID(user); ok {
		return byID(uid), group, nil
	}
	return account{}, "", fmt.Errorf("unable to find user %s: no matching entries in passwd file", user)
}

func groupID(groups []group, name string) (uint32, error) {
	for _, g := range groups {
		if g.name == name {
			return g.gid, nil
		}
	}
	if gid, ok := parseID(name); ok {
		return gid, nil
	}
	return 0, fmt.Errorf("unable to find group %s: no matching entries in group file", name)
}

func readAccounts(rootfs string) ([]account, error) {
	var out []account
	err := eachLine(rootfs, "/etc/passwd", func(f []string) {
		if len(f) < 6 {
			return
		}
		uid, ok1 := parseID(f[2])
		gid, ok2 := parseID(f[3])
		if ok1 && ok2 {
			out = append(out, account{name: f[0], uid: uid, gid: gid, home: f[5]})
		}
	})
	return out, err
}

// group is a line of /etc/group.
type group struct {
	name    string
	gid     uint32
	members []string
}

func readGroups(rootfs string) ([]group, error) {
	var out []group
	err := eachLine(rootfs, "/etc/group", func(f []string) {
		if len(f) < 3 {
			return
		}
		gid, ok := parseID(f[2])
		if !ok {
			return
		}
		g := group{name: f[0], gid: gid}
		if len(f) > 3 && f[3] != "" {
			g.members = strings.Split(f[3], ",")
		}
		out = append(out, g)
	})
	return out, err
}

// eachLine reads a colon-separated file of the image; one that is not there is empty.
func eachLine(rootfs, name string, fn func(fields []string)) error {
	f, err := openInside(rootfs, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return err
	}
	lines := bufio.NewScanner(io.LimitReader(f, maxAccounts))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line != "" && line[0] != '#' {
			fn(strings.Split(line, ":"))
		}
	}
	return lines.Err()
}
