package main

import (
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	"coracle.dev/coracle/cluster"
	"coracle.dev/coracle/container"
)

func newImage() *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "Import, build, list, pull and remove the node's container images"}
	c.AddCommand(newImageImport(), newImageBuild(), newImageList(), newImageRemove(), newImagePull())
	return c
}

func newImageImport() *cobra.Command {
	var dir, name string
	c := &cobra.Command{
		Use:   "import FILE...",
		Short: `Import images from tars made by "docker save" or of an OCI layout; "-" is standard input`,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			control, err := connect(dir)
			if err != nil {
				return err
			}
			for _, file := range files {
				in := os.Stdin
				if file != "-" {
					if in, err = os.Open(file); err != nil {
						return err
					}
					defer in.Close()
				}
				images, err := control.ImportImage(cmd.Context(), in, name)
				if err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				printNames(cmd, "Imported", images)
			}
			return nil
		},
	}
	addDataDir(c, &dir)
	c.Flags().StringVar(&name, "name", "", "name for an image that has none in the file")
	return c
}

func newImagePull() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "pull IMAGE...",
		Short: "Fetch images from their registries",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			control, err := connect(dir)
			if err != nil {
				return err
			}
			for _, ref := range refs {
				images, err := control.PullImage(cmd.Context(), ref)
				if err != nil {
					return err
				}
				printNames(cmd, "Pulled", images)
			}
			return nil
		},
	}
	addDataDir(c, &dir)
	return c
}

func newImageRemove() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:     "rm IMAGE...",
		Aliases: []string{"remove"},
		Short:   "Remove images by name or ID",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			control, err := connect(dir)
			if err != nil {
				return err
			}
			for _, ref := range refs {
				if err := control.RemoveImage(cmd.Context(), ref); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), "Removed "+ref)
			}
			return nil
		},
	}
	addDataDir(c, &dir)
	return c
}

func newImageList() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List images",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			control, err := connect(dir)
			if err != nil {
				return err
			}
			images, err := control.Images(cmd.Context())
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 3, ' ', 0)
			fmt.Fprintln(w, "IMAGE\tID\tSIZE\tAGE")
			for _, image := range images {
				names := image.Names
				if len(names) == 0 {
					names = []string{"<none>"}
				}
				for _, name := range names {
					fmt.Fprintf(w, "%s\t%.12s\t%.1fMB\t%s\n", name, strings.TrimPrefix(image.ID, "sha256:"),
						float64(image.Size)/1e6, duration.HumanDuration(time.Since(image.Pulled)))
				}
			}
			return w.Flush()
		},
	}
	addDataDir(c, &dir)
	return c
}

func connect(dir string) (*cluster.Control, error) {
	control, err := cluster.Connect(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: start it with `coracle up`", err)
	}
	return control, nil
}

func printNames(cmd *cobra.Command, did string, images []container.Image) {
	for _, image := range images {
		name := image.ID
		if len(image.Names) > 0 {
			name = strings.Join(image.Names, ", ")
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", did, name)
	}
}
