package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// newImage is an image for three platforms, of which loaders that know only one
// get linux/arm64.
func newImage(t *testing.T) image {
	t.Helper()
	img := image{Tag: "zlayer-cni:v1", Default: "arm64"}
	dir := t.TempDir()
	for _, platform := range []string{"linux/amd64", "linux/arm64", "windows/arm64"} {
		tree := filepath.Join(dir, filepath.FromSlash(platform))
		img.Trees = append(img.Trees, tree)
		writeFile(t, filepath.Join(tree, "overlayd"), "the daemon for "+platform)
		writeFile(t, filepath.Join(tree, "cni", "zlayer-cni"), "the plugin for "+platform)
	}
	return img
}

// wantFiles are the files of a platform's layer, folders among them.
func wantFiles(p platform) map[string]string {
	daemon, plugin := "the daemon for "+p.OS+"/"+p.Architecture, "the plugin for "+p.OS+"/"+p.Architecture
	if p.OS == "linux" {
		return map[string]string{"overlayd": daemon, "cni/zlayer-cni": plugin}
	}
	files := map[string]string{"Files/overlayd": daemon, "Files/cni/zlayer-cni": plugin}
	for _, folder := range []string{"", "Windows/", "Windows/System32/", "Windows/System32/config/", "cni/"} {
		files["Files/"+folder] = ""
	}
	for _, hive := range []string{"DEFAULT", "SAM", "SECURITY", "SOFTWARE", "SYSTEM"} {
		files["Files/Windows/System32/config/"+hive] = string(emptyHive())
	}
	return files
}

func wantConfig(p platform, layer string) imageConfig {
	config := imageConfig{
		Architecture: p.Architecture, OS: p.OS,
		Config: containerConfig{Entrypoint: []string{"/overlayd"}, Cmd: []string{"run"}, WorkingDir: "/"},
		RootFS: rootFS{Type: "layers", DiffIDs: []string{blob(layer).digest()}},
	}
	if p.OS == "windows" {
		config.Config = containerConfig{Entrypoint: []string{`%CONTAINER_SANDBOX_MOUNT_POINT%\overlayd.exe`}, Cmd: []string{"run"}}
	}
	return config
}

// TestDockerReadsIt reads the image as docker load does: from the manifest to
// the config, the layer and its digest, and the programs in it.
func TestDockerReadsIt(t *testing.T) {
	files := write(t, newImage(t))
	var manifest dockerManifest
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
	if diff := cmp.Diff(wantConfig(platform{OS: "linux", Architecture: "arm64"}, layer), config); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantFiles(platform{OS: "linux", Architecture: "arm64"}), untar(t, []byte(layer))); diff != "" {
		t.Errorf("files in the image (-want +got):\n%s", diff)
	}
}

// TestContainerdReadsIt reads the image as an OCI layout: from the index by way
// of the index of platforms to each one's layer, digests and sizes checked.
func TestContainerdReadsIt(t *testing.T) {
	files := write(t, newImage(t))
	follow := func(d descriptor, into any) string {
		t.Helper()
		content, found := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if !found || blob(content).digest() != d.Digest || int64(len(content)) != d.Size {
			t.Fatalf("%+v names content of %d bytes (found: %v)", d, len(content), found)
		}
		if into != nil {
			decode(t, content, into)
		}
		return content
	}
	if want := `{"imageLayoutVersion":"1.0.0"}`; files["oci-layout"] != want {
		t.Errorf("oci-layout is %s, want %s", files["oci-layout"], want)
	}
	var top, platforms ociIndex
	decode(t, files["index.json"], &top)
	want := map[string]string{"io.containerd.image.name": "docker.io/library/zlayer-cni:v1", "org.opencontainers.image.ref.name": "v1"}
	if diff := cmp.Diff(want, top.Manifests[0].Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	follow(top.Manifests[0], &platforms)
	var found []platform
	for _, d := range platforms.Manifests {
		var manifest ociManifest
		follow(d, &manifest)
		layer := follow(manifest.Layers[0], nil)
		var config imageConfig
		follow(manifest.Config, &config)
		if diff := cmp.Diff(wantConfig(*d.Platform, layer), config); diff != "" {
			t.Errorf("config (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(wantFiles(*d.Platform), untar(t, []byte(layer))); diff != "" {
			t.Errorf("files for %v (-want +got):\n%s", *d.Platform, diff)
		}
		found = append(found, *d.Platform)
	}
	if diff := cmp.Diff([]platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}, {OS: "windows", Architecture: "arm64"}}, found); diff != "" {
		t.Errorf("platforms (-want +got):\n%s", diff)
	}
}

func TestSameFilesSameBytes(t *testing.T) {
	img := newImage(t)
	var first, second bytes.Buffer
	for _, w := range []*bytes.Buffer{&first, &second} {
		if err := img.Write(w); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same files gave two different archives")
	}
}

func TestNames(t *testing.T) {
	for tag, want := range map[string]string{
		"zlayer-cni:dev":               "docker.io/library/zlayer-cni:dev",
		"zlayer/zlayer-cni:dev":        "docker.io/zlayer/zlayer-cni:dev",
		"registry.test/zlayer-cni:dev": "registry.test/zlayer-cni:dev",
		"localhost:5000/zlayer-cni:v2": "localhost:5000/zlayer-cni:v2",
	} {
		if got := (image{Tag: tag}).names()["io.containerd.image.name"]; got != want {
			t.Errorf("%s is called %s, want %s", tag, got, want)
		}
	}
}

func TestArchiveErrors(t *testing.T) {
	unknown := emptyTree(t, "plan9")
	writeFile(t, filepath.Join(unknown, "overlayd"), "the daemon")
	for _, tc := range []struct {
		name  string
		trees []string
	}{
		{"no folder", nil},
		{"missing folder", []string{filepath.Join(t.TempDir(), "linux", "amd64")}},
		{"empty folder", []string{emptyTree(t, "linux")}},
		{"empty folder for Windows", []string{emptyTree(t, "windows")}},
		{"folder of no system that is known", []string{unknown}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := (image{Trees: tc.trees}).Write(io.Discard); err == nil {
				t.Error("no error")
			}
		})
	}
}

// emptyTree is a folder of a system with nothing in it.
func emptyTree(t *testing.T, goos string) string {
	t.Helper()
	tree := filepath.Join(t.TempDir(), goos, "amd64")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	return tree
}

// TestFoldersComeFirst checks that a layer of Windows names each folder before
// what is in it: whoever unpacks it makes none by itself.
func TestFoldersComeFirst(t *testing.T) {
	img := newImage(t)
	layer, err := layerOf(img.Trees[2], "windows")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{"./": true}
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if parent := path.Dir(path.Clean(header.Name)) + "/"; !there[parent] {
			t.Errorf("%s comes before %s", header.Name, parent)
		}
		if header.Typeflag == tar.TypeDir {
			there[header.Name] = true
		}
	}
}

func write(t *testing.T, img image) map[string]string {
	t.Helper()
	var archive bytes.Buffer
	if err := img.Write(&archive); err != nil {
		t.Fatal(err)
	}
	return untar(t, archive.Bytes())
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
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
