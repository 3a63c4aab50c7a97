package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/image/build"
)

// imageBuild is what `coracle image build` is asked for.
type imageBuild struct {
	dir, name, output, user, workdir string
	entrypoint, env                  []string
}

func newImageBuild() *cobra.Command {
	var b imageBuild
	c := &cobra.Command{
		Use:   "build --name NAME FILE[:PATH]...",
		Short: "Make an image out of files and import it: for a static program no registry and no Dockerfile are needed",
		Long: `Make an image out of files of this machine and import it into the running node.

A file goes to the image's root under its own name, or to PATH; a folder goes there with all that is in
it. The first file is the entrypoint unless --entrypoint says otherwise. The image holds nothing else: a
program in it has to be static (CGO_ENABLED=0 go build).`,
		Example: `  CGO_ENABLED=0 go build -o controller ./examples/webhook-controller
  coracle image build --name webhook-controller:v1 controller`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error { return b.run(cmd, files) },
	}
	addDataDir(c, &b.dir)
	c.Flags().StringVar(&b.name, "name", "", "name of the image, with a tag")
	c.Flags().StringVarP(&b.output, "output", "o", "", `write the image to a file as "docker save" would, and import nothing; "-" is standard output`)
	c.Flags().StringSliceVar(&b.entrypoint, "entrypoint", nil, "the command that a container runs")
	c.Flags().StringArrayVar(&b.env, "env", nil, "NAME=VALUE of an environment variable")
	c.Flags().StringVar(&b.user, "user", "", "user that a container runs as, UID[:GID]")
	c.Flags().StringVar(&b.workdir, "workdir", "", "folder in which a container starts")
	return c
}

func (b *imageBuild) run(cmd *cobra.Command, args []string) error {
	if b.name == "" {
		return errors.New("name the image: coracle image build --name NAME:TAG FILE")
	}
	img, err := b.image(args)
	if err != nil {
		return err
	}
	switch b.output {
	case "":
	case "-":
		return img.Write(cmd.OutOrStdout())
	default:
		f, err := os.Create(b.output)
		if err != nil {
			return err
		}
		return errors.Join(img.Write(f), f.Close())
	}
	control, err := connect(b.dir)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(img.Write(w)) }()
	images, err := control.ImportImage(cmd.Context(), r, "")
	r.CloseWithError(err) // ends the writer if the node stopped reading
	if err != nil {
		return err
	}
	printNames(cmd, "Built", images)
	return nil
}

// image describes the image that the arguments stand for.
func (b *imageBuild) image(args []string) (build.Image, error) {
	img := build.Image{Names: []string{b.name}, Config: container.ImageConfig{
		Entrypoint: b.entrypoint, Env: b.env, User: b.user, WorkingDir: b.workdir}}
	if len(img.Config.Env) == 0 {
		img.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/"}
	}
	var files []build.File
	for _, arg := range args {
		from, to, named := strings.Cut(arg, ":")
		if !named || to == "" {
			to = "/" + filepath.Base(from)
		}
		info, err := os.Stat(from)
		if err != nil {
			return img, err
		}
		if info.IsDir() {
			found, err := folder(from, to)
			if err != nil {
				return img, err
			}
			files = append(files, found...)
			continue
		}
		if len(img.Config.Entrypoint) == 0 {
			img.Config.Entrypoint = []string{path.Clean("/" + to)}
		}
		files = append(files, build.File{Path: to, From: from, Mode: int64(info.Mode().Perm())})
	}
	if len(img.Config.Entrypoint) == 0 {
		return img, errors.New("there is no file to run among the folders: say which with --entrypoint")
	}
	img.Layers = [][]build.File{files}
	return img, nil
}

// folder lists what is in a folder.
func folder(from, to string) ([]build.File, error) {
	var files []build.File
	err := filepath.WalkDir(from, func(file string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rest, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		f := build.File{Path: path.Join(to, filepath.ToSlash(rest))}
		switch {
		case d.IsDir():
			f.Dir = true
		case d.Type()&os.ModeSymlink != 0:
			if f.Link, err = os.Readlink(file); err != nil {
				return err
			}
		case d.Type().IsRegular():
			info, err := d.Info()
			if err != nil {
				return err
			}
			f.From, f.Mode = file, int64(info.Mode().Perm())
		default:
			return fmt.Errorf("%s is neither a file, a folder nor a link", file)
		}
		files = append(files, f)
		return nil
	})
	return files, err
}
