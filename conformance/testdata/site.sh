# Makes what the cases of the corpus load from the network: files for a web
# server below http/, and repositories below git/. It prints facts about them.
umask 022
mkdir -p http git/repo tree/dir/deep
cd tree
echo one > one
echo two > dir/two
echo three > dir/deep/three
ln -s one link
printf '#!/bin/sh\necho run\n' > run.sh
chmod 755 run.sh
chmod 640 dir/two
find . -exec touch -h -d @1450000000 {} +
pack() { tar --owner=7 --group=8 --numeric-owner --sort=name -cf - "$@"; }
pack one dir link run.sh > ../http/tree.tar
gzip -nc < ../http/tree.tar > ../http/tree.tar.gz
bzip2 -c < ../http/tree.tar > ../http/tree.tar.bz2
xz -c < ../http/tree.tar > ../http/tree.tar.xz
zstd -qc < ../http/tree.tar > ../http/tree.tar.zst
cd ..
printf 'a file\n' > http/file
printf 'a script\n' > http/script.sh
gzip -nc < http/file > http/file.gz
printf 'FROM base\nCOPY <<x /remote\nby http\nx\n' > http/Dockerfile
printf 'FROM base\nCOPY . /all/\n' > http/Copies.Dockerfile
mkdir context
printf 'FROM base\nCOPY . /context/\n' > context/Dockerfile
printf 'FROM base\nCOPY inner /sub/\n' > context/Other.Dockerfile
mkdir context/inner
echo inner > context/inner/file
echo log > context/ignored.log
echo '*.log' > context/.dockerignore
find context -exec touch -h -d @1450000000 {} +
tar -C context --owner=0 --group=0 --sort=name -czf http/context.tar.gz .
tar -C context --owner=0 --group=0 --sort=name -cf http/context.tar .
bzip2 -c < http/context.tar > http/context.tar.bz2
xz -c < http/context.tar > http/context.tar.xz
zstd -qc < http/context.tar > http/context.tar.zst
find http -exec touch -d @1460000000 {} +

g() { git -C git/repo -c protocol.file.allow=always "$@"; }
git init -q -b main git/sub
echo sub > git/sub/inner
git -C git/sub add .
git -C git/sub commit -q -m sub
git init -q -b main git/repo
cp -a tree/. git/repo/
printf 'FROM base\nCOPY . /repo/\n' > git/repo/Dockerfile
mkdir git/repo/folder
printf 'FROM base\nCOPY . /folder/\n' > git/repo/folder/Dockerfile
echo folder > git/repo/folder/file
echo '*.md' > git/repo/.dockerignore
echo readme > git/repo/README.md
g add .
g commit -q -m first
g tag -a v1 -m v1
g tag light
first=$(g rev-parse HEAD)
g submodule add -q "$PWD/git/sub" vendor/sub
g config -f .gitmodules submodule.vendor/sub.url ../../sub/.git
echo changed > git/repo/one
g add .
g commit -q -m second
g branch feature/x "$first"
git init -q -b main --object-format=sha256 git/sha256
cp -a tree/. git/sha256/
printf 'FROM base\nCOPY . /sha256/\n' > git/sha256/Dockerfile
git -C git/sha256 add .
git -C git/sha256 commit -q -m first
git -C git/sha256 tag v1
g checkout -q -b epoch "$first"
printf 'ARG SOURCE_DATE_EPOCH=context\nFROM base\nCOPY one /\n' > git/repo/Epoch.Dockerfile
printf 'FROM base\nARG SOURCE_DATE_EPOCH\nRUN echo $SOURCE_DATE_EPOCH > /e\n' > git/repo/Declared.Dockerfile
g add Epoch.Dockerfile Declared.Dockerfile
g commit -q -m epoch
g checkout -q main
for r in repo sub sha256; do git -C git/$r config uploadpack.allowAnySHA1InWant true; done
echo "FIRST=$first"
echo "COMMIT=$(g rev-parse HEAD)"
echo "SHORTFIRST=$(g rev-parse --short=12 "$first")"
echo "SHORT=$(g rev-parse --short=10 HEAD)"
echo "SHA256=$(git -C git/sha256 rev-parse HEAD)"
echo "TAG=$(g rev-parse v1)"
for f in file tree.tar.gz file.gz; do
	echo "SUM-$f=sha256:$(sha256sum < http/$f | cut -d' ' -f1)"
done
