// Command image packs static programs as a container image.
//
// The image holds the programs in / and nothing else: no shell, no libraries.
// It is written as the archive that `docker save` writes, which docker load,
// podman load and ctr images import read, so no container engine is needed to
// build it. The same programs give the same bytes.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
)

func main() {
	var img image
	flag.StringVar(&img.Tag, "tag", "zlayer-cni:latest", "name and tag of the image")
	flag.StringVar(&img.Architecture, "arch", runtime.GOARCH, "architecture the programs were built for")
	out := flag.String("out", "image.tar", "file to write")
	flag.Parse()
	img.Programs = flag.Args()

	if err := run(*out, img); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(out string, img image) error {
	file, err := os.Create(out)
	if err != nil {
		return err
	}
	if err := img.Write(file); err != nil {
		return fmt.Errorf("write %s: %w", out, err)
	}
	return file.Close()
}
