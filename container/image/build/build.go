// Package build makes images out of files, for tests and demonstrations: no
// registry is needed, no instructions are run. The result is a docker archive that
// any runtime loads.
package build

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"sort"
	"strings"
	"time"

	"coracle.dev/coracle/container"
)

// File is one file of an image.
type File struct {
	// Path in the image.
	Path string
	// From is a file on this machine to copy, Data its content otherwise.
	From string
	Data []byte
	// Link makes a symbolic link to this target.
	Link string
	// Dir makes a directory.
	Dir bool
	// Mode as in chmod (0 is 0755), owner, and time.
	Mode     int64
	UID, GID int
	Time     time.Time
}

// Image describes an image to build. The same description gives the same bytes.
type Image struct {
	// Names are its tags, "busybox" or in full.
	Names []string
	// Layers are lists of files, the lowest layer first. Missing parent directories are made.
	Layers [][]File
	Config container.ImageConfig
	// Created is the date it bears, 1970 if zero.
	Created time.Time
}

type layer struct {
	data   []byte
	digest string
}

// Write writes the image as a docker archive.
func (img Image) Write(w io.Writer) error {
	var layers []layer
	made := map[string]bool{".": true, "/": true}
	for _, files := range img.Layers {
		data, err := layerTar(files, made)
		if err != nil {
			return fmt.Errorf("building an image: %w", err)
		}
		sum := sha256.Sum256(data)
		layers = append(layers, layer{data, hex.EncodeToString(sum[:])})
	}
	config, err := img.config(layers)
	if err != nil {
		return fmt.Errorf("building an image: %w", err)
	}
	sum := sha256.Sum256(config)
	configName := hex.EncodeToString(sum[:]) + ".json"
	manifest := []map[string]any{{"Config": configName, "RepoTags": img.Names, "Layers": layerNames(layers)}}
	raw, err := json.Marshal(manifest)
	if err != nil {
		return fmt.Errorf("building an image: %w", err)
	}
	tw := tar.NewWriter(w)
	put := func(name string, data []byte) error {
		h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		_, err := tw.Write(data)
		return err
	}
	if err := put(configName, config); err != nil {
		return err
	}
	for i, l := range layers {
		if err := put(layerNames(layers)[i], l.data); err != nil {
			return err
		}
	}
	if err := put("manifest.json", raw); err != nil {
		return err
	}
	return tw.Close()
}

// Archive is Write into memory.
func (img Image) Archive() ([]byte, error) {
	var b bytes.Buffer
	if err := img.Write(&b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func layerNames(layers []layer) []string {
	out := make([]string, len(layers))
	for i, l := range layers {
		out[i] = fmt.Sprintf("%d-%s.tar", i, l.digest[:12])
	}
	return out
}

func (img Image) config(layers []layer) ([]byte, error) {
	set := func(list []string) map[string]struct{} {
		if len(list) == 0 {
			return nil
		}
		m := map[string]struct{}{}
		for _, s := range list {
			m[s] = struct{}{}
		}
		return m
	}
	var diffs []string
	for _, l := range layers {
		diffs = append(diffs, "sha256:"+l.digest)
	}
	c := img.Config
	arch := c.Architecture
	if arch == "" {
		arch = runtime.GOARCH
	}
	created := img.Created
	if created.IsZero() {
		created = time.Unix(0, 0)
	}
	return json.Marshal(map[string]any{
		"architecture": arch, "os": "linux", "created": created.UTC(),
		"config": map[string]any{
			"User": c.User, "Env": c.Env, "Entrypoint": c.Entrypoint, "Cmd": c.Cmd, "WorkingDir": c.WorkingDir,
			"StopSignal": c.StopSignal, "Labels": c.Labels, "Volumes": set(c.Volumes), "ExposedPorts": set(c.ExposedPorts),
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
}

// layerTar writes a layer. made are the directories, and links to some, that are there already.
func layerTar(files []File, made map[string]bool) ([]byte, error) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, f := range files {
		name := strings.TrimPrefix(path.Clean("/"+f.Path), "/")
		if err := parents(tw, path.Dir(name), made); err != nil {
			return nil, err
		}
		if err := member(tw, name, f); err != nil {
			return nil, err
		}
		if f.Dir || f.Link != "" {
			made[name] = true
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func parents(tw *tar.Writer, dir string, made map[string]bool) error {
	if made[dir] {
		return nil
	}
	if err := parents(tw, path.Dir(dir), made); err != nil {
		return err
	}
	made[dir] = true
	return member(tw, dir, File{Dir: true})
}

func member(tw *tar.Writer, name string, f File) error {
	mode, when := f.Mode, f.Time
	if mode == 0 {
		mode = 0o755
	}
	if when.IsZero() {
		when = time.Unix(0, 0)
	}
	h := &tar.Header{Name: name, Mode: mode, Uid: f.UID, Gid: f.GID, ModTime: when, Format: tar.FormatPAX}
	data := f.Data
	switch {
	case f.Dir:
		h.Typeflag, h.Name, data = tar.TypeDir, name+"/", nil
	case f.Link != "":
		h.Typeflag, h.Linkname, data = tar.TypeSymlink, f.Link, nil
	default:
		h.Typeflag = tar.TypeReg
		if f.From != "" {
			var err error
			if data, err = os.ReadFile(f.From); err != nil {
				return err
			}
		}
		h.Size = int64(len(data))
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := tw.Write(data)
	return err
}

// Busybox describes an image with a static busybox as all the usual commands, a shell,
// users and groups, and /tmp.
func Busybox(binary string, names ...string) Image {
	files := []File{
		{Path: "bin/busybox", From: binary},
		{Path: "etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"), Mode: 0o644},
		{Path: "etc/group", Data: []byte("root:x:0:\ndaemon:x:1:\nadm:x:4:www-data\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n"), Mode: 0o644},
		{Path: "etc/shadow", Data: []byte("root:*:::::::\n"), Mode: 0o640},
		{Path: "tmp", Dir: true, Mode: 0o1777},
		{Path: "root", Dir: true, Mode: 0o700},
		{Path: "home", Dir: true},
		{Path: "var/www", Dir: true},
		{Path: "usr/bin", Dir: true}, {Path: "usr/sbin", Dir: true}, {Path: "sbin", Dir: true},
	}
	applets := strings.Fields(busyboxApplets)
	sort.Strings(applets)
	for _, a := range applets {
		files = append(files, File{Path: "bin/" + a, Link: "busybox"})
	}
	files = append(files, File{Path: "usr/bin/env", Link: "/bin/busybox"})
	return Image{
		Names: names, Layers: [][]File{files},
		Config: container.ImageConfig{
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd: []string{"sh"},
		},
	}
}

// busyboxApplets are commands that Debian's static busybox has.
const busyboxApplets = `ash awk base64 basename cat chgrp chmod chown chroot clear cmp cp cut date dd df diff
dirname dmesg du echo egrep env expand expr false fgrep find fold free ftpget ftpput getopt grep groups gunzip gzip
head hexdump hostid hostname httpd id ifconfig install ip kill killall last less ln logger ls lsof md5sum mkdir mkfifo
mknod mktemp more mount mv nc netstat nice nl nohup nslookup od paste patch pidof ping ping6 printf ps pwd readlink
realpath renice reset rev rm rmdir route sed seq setsid sh sha1sum sha256sum sha512sum sleep sort split stat strings stty
su sync sysctl tac tail tar tee telnet test time timeout top touch tr traceroute true truncate tty udhcpc umount uname
uniq unzip uptime usleep vi watch wc wget which whoami xargs yes zcat`
