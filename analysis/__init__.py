"""The measurements and pictures of `analysis_paper.ipynb`: each module measures one thing and draws it."""
