package layer

import (
	"archive/tar"
	"maps"
	"strconv"
	"strings"
	"time"
)

// Layers of Windows images have the files of a container below one folder, and
// pieces of the registry below another. BuildKit reads and writes such layers on
// Linux, too, and so do we: for every image that is pulled for Windows, and for
// what is made on top of one.
const (
	windowsFiles = "Files"
	windowsHives = "Hives"
	windowsVM    = "UtilityVM" // the system that isolates containers with one of their own
)

// Records of headers that Windows reads, by the names that libarchive and
// go-winio's backuptar give them.
const (
	paxFileAttributes = "MSWINDOWS.fileattr"
	paxSecurity       = "MSWINDOWS.rawsd"
	paxCreationTime   = "LIBARCHIVE.creationtime"
)

// Attributes of files (MS-FSCC, section 2.6).
const (
	attributeDirectory = "16"
	attributeArchive   = "32"
)

// Security descriptors (MS-DTYP, section 2.4.6) in base64: administrators and the
// system may do all, users may read, in folders also create.
const (
	// O:BAG:SYD:(A;OICI;FA;;;BA)(A;OICI;FA;;;SY)(A;;FA;;;BA)(A;OICIIO;GA;;;CO)(A;OICI;0x1200a9;;;BU)(A;CI;LC;;;BU)(A;CI;DC;;;BU)
	securityOfFolders = "AQAEgBQAAAAkAAAAAAAAADAAAAABAgAAAAAABSAAAAAgAgAAAQEAAAAAAAUSAAAAAgCoAAcAAAAAAxgA/wEfAAECAAAAAAAFIAAAACACAAAAAxQA" +
		"/wEfAAEBAAAAAAAFEgAAAAAAGAD/AR8AAQIAAAAAAAUgAAAAIAIAAAALFAAAAAAQAQEAAAAAAAMAAAAAAAMYAKkAEgABAgAAAAAABSAAAAAhAgAA" +
		"AAIYAAQAAAABAgAAAAAABSAAAAAhAgAAAAIYAAIAAAABAgAAAAAABSAAAAAhAgAA"
	// O:BAG:SYD:(A;;FA;;;BA)(A;;FA;;;SY)(A;;0x1200a9;;;BU)
	securityOfFiles = "AQAEgBQAAAAkAAAAAAAAADAAAAABAgAAAAAABSAAAAAgAgAAAQEAAAAAAAUSAAAAAgBMAAMAAAAAABgA/wEfAAECAAAAAAAFIAAAACACAAAAABQA" +
		"/wEfAAEBAAAAAAAFEgAAAAAAGACpABIAAQIAAAAAAAUgAAAAIQIAAA=="
)

// isWindowsLayout tells by its first entry how a layer is laid out: images that
// were built for Windows from nothing, on Linux, have files where Linux has them.
func isWindowsLayout(first *tar.Header) bool {
	top, _, _ := strings.Cut(strings.TrimPrefix(first.Name, "./"), "/")
	return top == windowsFiles || top == windowsHives || top == windowsVM
}

// fromWindows turns an entry of a Windows layer into that of the file in the
// container; it reports false for what is none.
func fromWindows(h *tar.Header) bool {
	name, ok := strings.CutPrefix(h.Name, windowsFiles+"/")
	if !ok || name == "" {
		return false
	}
	h.Name, h.Linkname = name, strings.TrimPrefix(h.Linkname, windowsFiles+"/")
	return true
}

// toWindows turns the entry of a file into that of a Windows layer.
func toWindows(h *tar.Header) {
	h.Name = windowsFiles + "/" + h.Name
	if h.Linkname != "" {
		h.Linkname = windowsFiles + "/" + h.Linkname
	}
	describeForWindows(h)
	switch h.Typeflag {
	case tar.TypeDir:
		h.PAXRecords[paxSecurity] = securityOfFolders
	case tar.TypeReg:
		h.PAXRecords[paxSecurity] = securityOfFiles
	}
}

// windowsTop are the folders that each Windows layer begins with.
func windowsTop(at time.Time) []*tar.Header {
	var top []*tar.Header
	for _, name := range []string{windowsHives, windowsFiles} {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: name, ModTime: at}
		describeForWindows(h)
		top = append(top, h)
	}
	return top
}

// describeForWindows says what an entry is in the words that Windows knows. The
// mode has the file's type, as its tools write it.
func describeForWindows(h *tar.Header) {
	const typeDir, typeRegular = 1 << 14, 1 << 15
	records := maps.Clone(h.PAXRecords)
	if records == nil {
		records = map[string]string{}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		h.Mode |= typeDir
		records[paxFileAttributes] = attributeDirectory
	case tar.TypeReg:
		h.Mode |= typeRegular
		records[paxFileAttributes] = attributeArchive
	}
	records[paxCreationTime] = strconv.FormatInt(h.ModTime.Unix(), 10) + ".0" // whole seconds
	h.PAXRecords, h.Format = records, tar.FormatPAX
}
