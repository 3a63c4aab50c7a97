// Command e2e-images makes the images that Kubernetes' end-to-end tests ask for, on a machine that reaches no image
// registry: out of agnhost built from upstream's source, Debian's busybox, and programs of Debian's packages. Each goes to a
// docker archive in the directory that -out names.
//
//	e2e-images -out DIR -agnhost PROGRAM -pause PROGRAM -nnp PROGRAM -sample PROGRAM -etcd PROGRAM -sh PROGRAM -kubernetes DIR -debian DIR
//
// -kubernetes is the unpacked module k8s.io/kubernetes (data of some images), -debian a directory where packages were
// unpacked; programs that are not there are taken from this machine, and those in neither are left out with a word.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/image/build"
)

const registry = "registry.k8s.io/e2e-test-images/"

// sources are where the files of images come from.
type sources struct {
	agnhost, pause, nnp, sample, etcd, sh, kubernetes, debian string
}

func main() {
	var src sources
	out := flag.String("out", ".", "directory for the archives")
	flag.StringVar(&src.agnhost, "agnhost", "agnhost", "upstream's agnhost, static")
	flag.StringVar(&src.sh, "sh", "sh", "tools/e2e-images/sh, static")
	flag.StringVar(&src.pause, "pause", "pause", "tools/e2e-images/pause, static")
	flag.StringVar(&src.nnp, "nnp", "nnp", "upstream's nonewprivs, static")
	flag.StringVar(&src.sample, "sample", "sample-apiserver", "upstream's sample-apiserver, static")
	flag.StringVar(&src.etcd, "etcd", "etcd", "etcd, static")
	flag.StringVar(&src.kubernetes, "kubernetes", "", "unpacked module k8s.io/kubernetes")
	flag.StringVar(&src.debian, "debian", "", "directory with unpacked Debian packages")
	flag.Parse()
	images := map[string]build.Image{
		"agnhost":  src.agnhostImage(),
		"busybox":  src.busyboxImage(),
		"sample":   src.sampleImage(),
		"etcd":     src.etcdImage(),
		"glibc":    src.glibcImage(),
		"nonroot":  nonRoot(),
		"nnp":      src.noNewPrivileges(),
		"pause":    src.pauseImage(),
		"nginx":    src.nginxImage(),
		"kitten":   src.demoImage("kitten"),
		"nautilus": src.demoImage("nautilus"),
	}
	for name, img := range images {
		if err := write(filepath.Join(*out, name+".tar"), img); err != nil {
			fmt.Fprintf(os.Stderr, "e2e-images: %s: %v\n", name, err)
			os.Exit(1)
		}
	}
}

func write(path string, img build.Image) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := img.Write(f); err != nil {
		return err
	}
	return f.Close()
}

// agnhostLayers are a busybox system with the network programs of Debian that tests call, then agnhost as upstream's image
// lays it out.
func (s sources) agnhostLayers() [][]build.File {
	base := build.Busybox("/bin/busybox").Layers[0]
	tools := s.programs("usr/bin/curl", "usr/bin/dig", "usr/bin/nslookup", "bin/nc.openbsd", "bin/bash", "bin/dash", "usr/bin/getent", "bin/ss",
		"sbin/ip", "usr/bin/iperf", "usr/bin/socat", "usr/bin/ipcs")
	var files []build.File
	for _, f := range base {
		switch f.Path {
		case "bin/nc", "bin/nslookup", "bin/ip", "bin/ipcs":
			continue // Debian's take their places below
		case "bin/sh": // busybox's shell would take its own commands before those of the path
			f.Link = "dash"
		case "etc/passwd":
			f.Data = append(f.Data, "user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n"...)
		case "etc/group":
			f.Data = append(f.Data, "user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"...)
		}
		files = append(files, f)
	}
	files = append(files, build.File{Path: "etc/nsswitch.conf", Data: []byte("hosts: files dns\n"), Mode: 0o644})
	porter := filepath.Join(s.kubernetes, "test/images/agnhost/porter")
	own := []build.File{
		{Path: "agnhost", From: s.agnhost},
		{Path: "agnhost-2", Link: "agnhost"},
		{Path: "uploads", Dir: true},
		{Path: "localhost.crt", From: filepath.Join(porter, "localhost.crt"), Mode: 0o644},
		{Path: "localhost.key", From: filepath.Join(porter, "localhost.key"), Mode: 0o644},
	}
	return [][]build.File{append(files, tools...), own}
}

func (s sources) agnhostImage() build.Image {
	img := build.Busybox("/bin/busybox", registry+"agnhost:2.66.1", registry+"agnhost:2.55")
	img.Layers = s.agnhostLayers()
	img.Config.Entrypoint, img.Config.Cmd = []string{"/agnhost"}, []string{"pause"}
	return img
}

// glibcImage is the system without agnhost: all its programs use Debian's C library and so its resolver.
func (s sources) glibcImage() build.Image {
	img := build.Busybox("/bin/busybox", registry+"glibc-dns-testing:2.1.1")
	img.Layers = s.agnhostLayers()[:1]
	return img
}

// alpine is what upstream's image says of its system. Ours is put together from Debian's programs, and says that too.
const alpine = "NAME=\"Alpine Linux\"\nID=alpine\nPRETTY_NAME=\"stands in for Alpine Linux, with Debian's programs\"\n"

// demoImage is agnhost serving a picture: the two of upstream's update demonstration.
func (s sources) demoImage(name string) build.Image {
	img := s.agnhostImage()
	img.Names = []string{registry + name + ":1.8"}
	html := filepath.Join(s.kubernetes, "test/images", name, "html")
	img.Layers = append(img.Layers, []build.File{
		{Path: name + ".jpg", From: filepath.Join(html, name+".jpg"), Mode: 0o644},
		{Path: "data.json", From: filepath.Join(html, "data.json"), Mode: 0o644},
		{Path: "etc/os-release", Data: []byte(alpine), Mode: 0o644},
	})
	img.Config.Cmd = []string{"test-webserver"}
	return img
}

// busyboxImage has tools/e2e-images/sh for its shell, which is busybox's own or bash.
func (s sources) busyboxImage() build.Image {
	img := build.Busybox("/bin/busybox", registry+"busybox:1.37.0-2", registry+"busybox:1.36.1-1")
	bash, ok := s.find("bin/bash-static")
	if !ok {
		fmt.Fprintf(os.Stderr, "e2e-images: no bash-static in %s: the shell of busybox drops odd environment variables\n", s.debian)
		return img
	}
	var files []build.File
	for _, f := range img.Layers[0] {
		if f.Path != "bin/sh" {
			files = append(files, f)
		}
	}
	img.Layers[0] = append(files, build.File{Path: "bin/bash", From: bash}, build.File{Path: "bin/sh", From: s.sh})
	return img
}

// sampleImage is the extension API server of the aggregation test.
func (s sources) sampleImage() build.Image {
	return build.Image{
		Names:  []string{registry + "sample-apiserver:1.29.2"},
		Layers: [][]build.File{{{Path: "sample-apiserver", From: s.sample}, {Path: "tmp", Dir: true, Mode: 0o1777}}},
		Config: container.ImageConfig{Entrypoint: []string{"/sample-apiserver"},
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
	}
}

// etcdImage is what that server stores in.
func (s sources) etcdImage() build.Image {
	return build.Image{
		Names:  []string{"registry.k8s.io/etcd:3.7.0-0"},
		Layers: [][]build.File{{{Path: "usr/local/bin/etcd", From: s.etcd}, {Path: "tmp", Dir: true, Mode: 0o1777}}},
		Config: container.ImageConfig{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
	}
}

func (s sources) pauseImage() build.Image {
	return build.Image{
		Names:  []string{"registry.k8s.io/pause:3.10.2", "registry.k8s.io/pause:3.10.1"},
		Layers: [][]build.File{{{Path: "pause", From: s.pause}}},
		Config: container.ImageConfig{
			User: "65535:65535", Entrypoint: []string{"/pause"},
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
	}
}

func nonRoot() build.Image {
	img := build.Busybox("/bin/busybox", registry+"nonroot:1.5")
	img.Config.User = "1234"
	return img
}

// noNewPrivileges has a program that changes to root by its file's mode and tells what it became.
func (s sources) noNewPrivileges() build.Image {
	img := build.Busybox("/bin/busybox", registry+"nonewprivs:1.4")
	img.Layers = append(img.Layers, []build.File{{Path: "usr/local/bin/nnp", From: s.nnp, Mode: 0o6755}})
	img.Config.Cmd = []string{"nnp"}
	return img
}

const nginxConfig = `user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 256; }
http {
	access_log /dev/stdout;
	default_type text/html;
	server {
		listen 80;
		location / { root /usr/share/nginx/html; index index.html; }
	}
}
`

// nginxImage is Debian's nginx with its pages where the official image has them.
func (s sources) nginxImage() build.Image {
	img := build.Busybox("/bin/busybox", registry+"nginx:1.27.0-2", registry+"nginx:1.28.0-2")
	img.Layers = append(img.Layers, append(s.programs("usr/sbin/nginx"),
		build.File{Path: "etc/nginx/nginx.conf", Data: []byte(nginxConfig), Mode: 0o644},
		build.File{Path: "usr/share/nginx/html/index.html", Mode: 0o644,
			Data: []byte("<!DOCTYPE html>\n<html><head><title>Welcome to nginx!</title></head><body><h1>Welcome to nginx!</h1></body></html>\n")},
		build.File{Path: "var/log/nginx", Dir: true}, build.File{Path: "var/lib/nginx", Dir: true}, build.File{Path: "run", Dir: true},
		build.File{Path: "etc/nsswitch.conf", Data: []byte("passwd: files\ngroup: files\nhosts: files dns\n"), Mode: 0o644},
	))
	img.Config.Cmd = []string{"nginx", "-g", "daemon off;"}
	return img
}

// programs are dynamic programs of Debian and all the libraries they load, each library once.
func (s sources) programs(paths ...string) []build.File {
	var files []build.File
	seen := map[string]bool{}
	for _, p := range paths {
		from, ok := s.find(p)
		if !ok {
			fmt.Fprintf(os.Stderr, "e2e-images: %s is neither in %s nor on this machine: left out\n", p, s.debian)
			continue
		}
		name := "bin/" + strings.TrimSuffix(filepath.Base(p), ".openbsd")
		files = append(files, build.File{Path: name, From: from})
		for _, lib := range s.libraries(from) {
			if !seen[lib] {
				seen[lib] = true
				files = append(files, build.File{Path: s.libraryPath(lib), From: lib})
			}
		}
	}
	return files
}

// find gives the file behind a path of a Debian system.
func (s sources) find(path string) (string, bool) {
	for _, root := range []string{s.debian, "/"} {
		p, err := filepath.EvalSymlinks(filepath.Join(root, path))
		if err == nil {
			return p, true
		}
	}
	return "", false
}

// libraryPath is where a library lies in an image: the loader at its fixed path, all else in one directory it searches.
func (s sources) libraryPath(lib string) string {
	if strings.HasPrefix(filepath.Base(lib), "ld-linux") {
		return "lib64/" + filepath.Base(lib)
	}
	return "lib/x86_64-linux-gnu/" + filepath.Base(lib)
}

// libraries asks the loader what a program would load.
func (s sources) libraries(program string) []string {
	cmd := exec.Command("ldd", program)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(s.debian, "usr/lib/x86_64-linux-gnu")+":"+filepath.Join(s.debian, "lib/x86_64-linux-gnu"))
	out, err := cmd.Output()
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e-images: ldd %s: %v\n", program, err)
		return nil
	}
	var libs []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "not found") {
			fmt.Fprintf(os.Stderr, "e2e-images: %s: %s", program, line)
		}
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "/") {
				libs = append(libs, word)
			}
		}
	}
	return libs
}
