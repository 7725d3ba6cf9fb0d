// Command genproto generates the Go code of the project's .proto files.
//
// It needs no protoc: the files are compiled in process and handed to the two
// code generators, which this module pins as tools. Run it as
//
//	go -C tools/genproto run .
//
// It rewrites the *.pb.go files beside the .proto files. A second run changes
// nothing, so that a checkout can be tested for being fresh.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	_ "google.golang.org/genproto/googleapis/rpc/status" // registers google/rpc/status.proto
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// module is the path that generated files are placed relative to.
const module = "github.com/kiln-build/kiln"

func main() {
	log.SetFlags(0)
	log.SetPrefix("genproto: ")
	if err := generate(context.Background(), filepath.Join("..", "..")); err != nil {
		log.Fatal(err)
	}
}

func generate(ctx context.Context, root string) error {
	names, err := findProtos(root)
	if err != nil {
		return fmt.Errorf("find proto files: %w", err)
	}
	set, err := compile(ctx, root, names)
	if err != nil {
		return fmt.Errorf("compile proto files: %w", err)
	}
	if err := removeGenerated(root); err != nil {
		return fmt.Errorf("remove old code: %w", err)
	}
	for _, generator := range []struct{ name, options string }{
		{"protoc-gen-go", ""},
		{"protoc-gen-go-grpc", ",require_unimplemented_servers=false"},
	} {
		request := &pluginpb.CodeGeneratorRequest{
			FileToGenerate: names,
			Parameter:      new("module=" + module + generator.options),
			ProtoFile:      set,
		}
		if err := run(ctx, generator.name, request, root); err != nil {
			return fmt.Errorf("run %s: %w", generator.name, err)
		}
	}
	return nil
}

// findProtos lists the .proto files in the folders that hold any, relative to root.
func findProtos(root string) ([]string, error) {
	var names []string
	for _, dir := range []string{"llb", filepath.Join("internal", "api")} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if d != nil && d.IsDir() && d.Name() == "google" {
				return fs.SkipDir // definitions that are Google's to generate
			}
			if err != nil || d.IsDir() || filepath.Ext(path) != ".proto" {
				return err
			}
			name, err := filepath.Rel(root, path)
			names = append(names, filepath.ToSlash(name))
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(names)
	return names, nil
}

// compile returns the descriptors of names and all that they import, imports first.
func compile(ctx context.Context, root string, names []string) ([]*descriptorpb.FileDescriptorProto, error) {
	compiler := protocompile.Compiler{
		Resolver: protocompile.CompositeResolver{
			&protocompile.SourceResolver{ImportPaths: []string{root}},
			protocompile.ResolverFunc(resolveLinked),
		},
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(ctx, names...)
	if err != nil {
		return nil, err
	}
	var set []*descriptorpb.FileDescriptorProto
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) {
		if seen[file.Path()] {
			return
		}
		seen[file.Path()] = true
		imports := file.Imports()
		for i := range imports.Len() {
			add(imports.Get(i).FileDescriptor)
		}
		set = append(set, protoutil.ProtoFromFileDescriptor(file))
	}
	for _, file := range files {
		add(file)
	}
	return set, nil
}

// resolveLinked finds imports of foreign files among the descriptors that are
// linked into this program.
func resolveLinked(name string) (protocompile.SearchResult, error) {
	file, err := protoregistry.GlobalFiles.FindFileByPath(name)
	if err != nil {
		return protocompile.SearchResult{}, err
	}
	return protocompile.SearchResult{Desc: file}, nil
}

// removeGenerated removes earlier output, so that code of a .proto file that
// is gone does not stay.
func removeGenerated(root string) error {
	for _, pattern := range []string{"llb/pb/*.pb.go", "internal/api/*/*.pb.go"} {
		old, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(pattern)))
		if err != nil {
			return err
		}
		for _, name := range old {
			if err := os.Remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func run(ctx context.Context, generator string, request *pluginpb.CodeGeneratorRequest, root string) error {
	input, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", generator)
	cmd.Stdin = bytes.NewReader(input)
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	if err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(output, &response); err != nil {
		return err
	}
	if response.Error != nil {
		return fmt.Errorf("%s", response.GetError())
	}
	for _, file := range response.File {
		if strings.Contains(file.GetName(), "..") {
			return fmt.Errorf("generated file %q lies outside of the module", file.GetName())
		}
		if err := os.WriteFile(filepath.Join(root, filepath.FromSlash(file.GetName())), []byte(file.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
