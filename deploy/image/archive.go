package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
)

// image is a container image of one layer for each platform.
type image struct {
	Tag string
	// Trees are folders named OS/ARCHITECTURE, as Go calls them.
	Trees []string
	// Default is the architecture of Linux that loaders get that know only one.
	Default string
}

// blob is content that others name by its digest.
type blob []byte

// Write writes the image's archive to w.
func (img image) Write(w io.Writer) error {
	if len(img.Trees) == 0 {
		return errors.New("no folder named")
	}
	archive := tar.NewWriter(w)
	var index ociIndex
	var saved dockerManifest
	for _, tree := range img.Trees {
		parts, err := pack(tree)
		if err != nil {
			return fmt.Errorf("pack %s: %w", tree, err)
		}
		for _, content := range []blob{parts.layer, parts.config, parts.manifest} {
			if err := addBlob(archive, content); err != nil {
				return err
			}
		}
		index.Manifests = append(index.Manifests, parts.descriptor())
		if len(saved) == 0 || parts.platform == (platform{OS: linux, Architecture: img.Default}) {
			saved = dockerManifest{{Config: parts.config.path(), RepoTags: []string{img.Tag}, Layers: []string{parts.layer.path()}}}
		}
	}
	platforms, err := index.encode()
	if err != nil {
		return err
	}
	top := ociIndex{Manifests: []descriptor{describe(typeIndex, platforms)}}
	top.Manifests[0].Annotations = img.names()
	topJSON, err := top.encode()
	if err != nil {
		return err
	}
	savedJSON, err := json.Marshal(saved)
	if err != nil {
		return err
	}
	return errors.Join(
		addBlob(archive, platforms),
		addFile(archive, "index.json", 0o644, topJSON),
		addFile(archive, "manifest.json", 0o644, savedJSON),
		addFile(archive, "oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)),
		archive.Close(),
	)
}

// names are the annotations from which loaders take the image's name. containerd
// wants it whole.
func (img image) names() map[string]string {
	whole := img.Tag
	if host, _, found := strings.Cut(img.Tag, "/"); !found {
		whole = "docker.io/library/" + img.Tag
	} else if !strings.ContainsAny(host, ".:") {
		whole = "docker.io/" + img.Tag
	}
	tag := img.Tag[strings.LastIndex(img.Tag, ":")+1:]
	return map[string]string{"io.containerd.image.name": whole, "org.opencontainers.image.ref.name": tag}
}

// packed is one platform's part of the image.
type packed struct {
	platform                platform
	layer, config, manifest blob
}

const (
	linux   = "linux"
	windows = "windows"
)

// configs are the containers of the systems that an image can be for. On Windows
// the image is for HostProcess containers alone: the runtime puts the place where
// it has mounted the image into the entry point, and takes that for the working
// folder. No version of Windows is named in it, since they run on every one.
func configs() map[string]containerConfig {
	return map[string]containerConfig{
		linux:   {Entrypoint: []string{"/overlayd"}, Cmd: []string{"run"}, WorkingDir: "/"},
		windows: {Entrypoint: []string{`%CONTAINER_SANDBOX_MOUNT_POINT%\overlayd.exe`}, Cmd: []string{"run"}},
	}
}

func pack(tree string) (packed, error) {
	p := packed{platform: platform{OS: filepath.Base(filepath.Dir(tree)), Architecture: filepath.Base(tree)}}
	config, known := configs()[p.platform.OS]
	if !known {
		return p, fmt.Errorf("its name does not end in OS/ARCHITECTURE with %s or %s for an OS", linux, windows)
	}
	var err error
	if p.layer, err = layerOf(tree, p.platform.OS); err != nil {
		return p, err
	}
	if p.config, err = json.Marshal(imageConfig{
		Architecture: p.platform.Architecture,
		OS:           p.platform.OS,
		Config:       config,
		RootFS:       rootFS{Type: "layers", DiffIDs: []string{p.layer.digest()}},
	}); err != nil {
		return p, err
	}
	p.manifest, err = json.Marshal(ociManifest{
		SchemaVersion: 2, MediaType: typeManifest,
		Config: describe(typeConfig, p.config), Layers: []descriptor{describe(typeLayer, p.layer)},
	})
	return p, err
}

// descriptor names the part in the index of all platforms.
func (p packed) descriptor() descriptor {
	d := describe(typeManifest, p.manifest)
	d.Platform = &p.platform
	return d
}

func addBlob(archive *tar.Writer, content blob) error {
	return addFile(archive, content.path(), 0o644, content)
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
