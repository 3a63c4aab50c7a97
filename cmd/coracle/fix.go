package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"coracle.dev/coracle/api/manifest"
)

func newFix() *cobra.Command {
	var files []string
	c := &cobra.Command{
		Use:   "fix -f FILE",
		Short: "Print manifests as the present Kubernetes accepts them",
		Long: `Print manifests as the present Kubernetes accepts them: API versions that were removed become
those in their place, with the fields that changed, and what every version refuses but whose meaning
is plain is put right (a Job without restartPolicy, a claim without access modes, a Deployment
without selector, a number where a string has to be).

Standard error says what was changed and why, line by line. What only its author can decide is
printed as it was, said on standard error, and makes the exit status 1. No cluster is needed.`,
		Example: "  coracle fix -f old.yaml | kubectl apply -f -",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return errors.New(`say which manifest: coracle fix -f FILE ("-" is standard input)`)
			}
			return fix(cmd, files)
		},
	}
	c.Flags().StringSliceVarP(&files, "filename", "f", nil, `manifests to fix, or folders of them; "-" is standard input`)
	return c
}

// fix prints the manifests and what was done to them.
func fix(cmd *cobra.Command, names []string) error {
	files, err := manifests(names)
	if err != nil {
		return err
	}
	open := false
	var all bytes.Buffer
	for i, file := range files {
		data, err := readManifest(cmd.InOrStdin(), file)
		if err != nil {
			return err
		}
		out, notes, err := manifest.Fix(data)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, n := range notes {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s:%s\n", file, n)
			open = open || n.Open
		}
		if i > 0 && !bytes.HasPrefix(out, []byte("---")) {
			all.WriteString("---\n")
		}
		all.Write(out)
		if len(out) > 0 && out[len(out)-1] != '\n' {
			all.WriteByte('\n')
		}
	}
	if _, err := cmd.OutOrStdout().Write(all.Bytes()); err != nil {
		return err
	}
	if open {
		return exitCode(1)
	}
	return nil
}

func readManifest(stdin io.Reader, file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(file)
}

// manifests lists the files that names stand for: folders are searched, as kubectl does without --recursive.
func manifests(names []string) ([]string, error) {
	var files []string
	for _, name := range names {
		if name == "-" {
			files = append(files, name)
			continue
		}
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, name)
			continue
		}
		entries, err := fs.ReadDir(os.DirFS(name), ".")
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
				files = append(files, filepath.Join(name, e.Name()))
			}
		}
	}
	return files, nil
}
