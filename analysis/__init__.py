"""The measurements and pictures of `analysis_paper.ipynb`: small modules, so that its cells only call."""
