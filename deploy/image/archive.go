package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
)

// image is a container image of one layer. The first program is what a
// container of it runs.
type image struct {
	Tag          string
	Architecture string
	Programs     []string // files to put into /, under their own names
}

// The parts of the archive's JSON that loaders need; the format is described
// in the image specification v1.2 of github.com/moby/docker-image-spec.
type (
	manifestEntry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	imageConfig struct {
		Architecture string          `json:"architecture"`
		OS           string          `json:"os"`
		Config       containerConfig `json:"config"`
		RootFS       rootFS          `json:"rootfs"`
	}
	containerConfig struct {
		Entrypoint []string
		Cmd        []string
		WorkingDir string
	}
	rootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
)

// Write writes the image's archive to w.
func (img image) Write(w io.Writer) error {
	if len(img.Programs) == 0 {
		return errors.New("no program named")
	}
	layer, err := img.layer()
	if err != nil {
		return fmt.Errorf("pack programs: %w", err)
	}
	config, err := json.Marshal(imageConfig{
		Architecture: img.Architecture,
		OS:           "linux",
		Config: containerConfig{
			Entrypoint: []string{"/" + filepath.Base(img.Programs[0])},
			Cmd:        []string{"run"},
			WorkingDir: "/",
		},
		RootFS: rootFS{Type: "layers", DiffIDs: []string{"sha256:" + digest(layer)}},
	})
	if err != nil {
		return err
	}
	configName, layerName := digest(config)+".json", path.Join(digest(layer), "layer.tar")
	manifest, err := json.Marshal([]manifestEntry{{
		Config: configName, RepoTags: []string{img.Tag}, Layers: []string{layerName},
	}})
	if err != nil {
		return err
	}
	archive := tar.NewWriter(w)
	return errors.Join(
		addFile(archive, configName, 0o644, config),
		addFile(archive, layerName, 0o644, layer),
		addFile(archive, "manifest.json", 0o644, manifest),
		archive.Close(),
	)
}

// layer returns the file tree of the image as an uncompressed tar archive.
func (img image) layer() ([]byte, error) {
	var buf bytes.Buffer
	archive := tar.NewWriter(&buf)
	for _, program := range img.Programs {
		content, err := os.ReadFile(program)
		if err != nil {
			return nil, err
		}
		if err := addFile(archive, filepath.Base(program), 0o755, content); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// addFile leaves time and owner at zero, so that the result depends on names
// and content alone.
func addFile(archive *tar.Writer, name string, mode int64, content []byte) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), Format: tar.FormatUSTAR}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
