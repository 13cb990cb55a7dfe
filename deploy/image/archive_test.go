package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestArchive reads the image as a loader does: from the manifest to the
// config, the layer and its digest, and the program in it.
func TestArchive(t *testing.T) {
	dir := t.TempDir()
	overlayd, plugin := filepath.Join(dir, "overlayd"), filepath.Join(dir, "zlayer-cni")
	writeFile(t, overlayd, "the daemon")
	writeFile(t, plugin, "the plugin")
	img := image{Tag: "zlayer-cni:v1", Architecture: "arm64", Programs: []string{overlayd, plugin}}

	var first, second bytes.Buffer
	for _, w := range []*bytes.Buffer{&first, &second} {
		if err := img.Write(w); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same programs gave two different archives")
	}

	files := untar(t, first.Bytes())
	var manifest []manifestEntry
	decode(t, files["manifest.json"], &manifest)
	if len(manifest) != 1 || len(manifest[0].Layers) != 1 {
		t.Fatalf("manifest %+v: want one image of one layer", manifest)
	}
	if diff := cmp.Diff([]string{"zlayer-cni:v1"}, manifest[0].RepoTags); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}

	layer := files[manifest[0].Layers[0]]
	var config imageConfig
	decode(t, files[manifest[0].Config], &config)
	want := imageConfig{
		Architecture: "arm64", OS: "linux",
		Config: containerConfig{Entrypoint: []string{"/overlayd"}, Cmd: []string{"run"}, WorkingDir: "/"},
		RootFS: rootFS{Type: "layers", DiffIDs: []string{"sha256:" + digest([]byte(layer))}},
	}
	if diff := cmp.Diff(want, config); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	wantFiles := map[string]string{"overlayd": "the daemon", "zlayer-cni": "the plugin"}
	if diff := cmp.Diff(wantFiles, untar(t, []byte(layer))); diff != "" {
		t.Errorf("files in the image (-want +got):\n%s", diff)
	}
}

func TestArchiveErrors(t *testing.T) {
	for _, tc := range []struct {
		name     string
		programs []string
	}{
		{"no program", nil},
		{"missing program", []string{filepath.Join(t.TempDir(), "missing")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := (image{Programs: tc.programs}).Write(io.Discard); err == nil {
				t.Error("no error")
			}
		})
	}
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

func decode(t *testing.T, content string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(content), into); err != nil {
		t.Fatalf("decode %q: %v", content, err)
	}
}

func untar(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	files := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = string(content)
	}
}
